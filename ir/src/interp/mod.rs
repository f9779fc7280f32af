//! The reference interpreter: the meaning of every operation, written for clarity.
//!
//! [`run`] executes a function of a module that verifies. Values of type f32 are computed in `T`, f32 or f64. In f64:
//! - tables (`rope_table`, `sinusoid_table`) are computed in f32 and widened;
//! - a cast to bf16 rounds to bf16, to nearest even;
//! - `quantize` computes scales and codes in f32, as the runtime does;
//! - everything else, constants and attributes too, is in f64.
//!
//! Caches are updated in place. Loops can be told how many iterations to run ([`Options::replay`]), so that two runs whose
//! rounding differs take the same exits.
mod attention;
mod elementwise;
mod linear;
mod loss;
mod real;
mod shape;
mod tensor;

pub use real::Real;
pub use tensor::{Data, Tensor};

use crate::entity::{Entity, OpId, RegionId, ValueId};
use crate::module::{Func, Loc, Module, Op};
use crate::ops::Opcode;
use crate::print::print_op;
use crate::types::Type;
use std::collections::{HashMap, VecDeque};
use std::rc::Rc;

/// Parameters and arguments by name. Tensors are shared, so that many runs can use the same parameters.
#[derive(Clone, Debug, Default)]
pub struct Inputs<T> {
    /// The parameters that the function uses.
    pub params: HashMap<String, Rc<Tensor<T>>>,
    /// The arguments.
    pub args: HashMap<String, Rc<Tensor<T>>>,
}

/// An operation that has just been executed. (A `loop` comes after the operations of its body.)
pub struct Event<'e, T> {
    /// The function.
    pub func: &'e Func,
    /// The operation.
    pub op: OpId,
    /// The step indices of the loops around it, outermost first.
    pub steps: &'e [usize],
    /// Its results.
    pub results: &'e [Rc<Tensor<T>>],
}

/// Sees each operation's results.
pub type Observer<'a, T> = Box<dyn FnMut(&Event<'_, T>) + 'a>;

/// How to run.
pub struct Options<'a, T> {
    /// Whether to record the carried values of loops.
    pub record: bool,
    /// The iterations of each loop in the order in which they begin, as [`Outputs::trips`] of an earlier run: exits are taken there
    /// instead of where the body says. Loops beyond the list run as usual.
    pub replay: Vec<usize>,
    /// Called after each operation.
    pub observer: Option<Observer<'a, T>>,
}

impl<T> Default for Options<'_, T> {
    fn default() -> Self {
        Options { record: false, replay: Vec::new(), observer: None }
    }
}

/// The carried values of one execution of a loop.
#[derive(Clone, Debug)]
pub struct LoopStates<T> {
    /// The loop.
    pub op: OpId,
    /// After each iteration, in the order in which they ran, the carried values that are not caches, in order.
    pub states: Vec<Vec<Rc<Tensor<T>>>>,
}

/// The results of a run.
#[derive(Clone, Debug)]
pub struct Outputs<T> {
    /// The outputs by name, in order. Stacked ones have `max_steps` entries, zero at and beyond the trips.
    pub tensors: Vec<(String, Rc<Tensor<T>>)>,
    /// Iterations of each loop, in the order in which they began (a loop inside a loop counts each time).
    pub trips: Vec<usize>,
    /// If asked for, one record for each entry of `trips`.
    pub loops: Vec<LoopStates<T>>,
}

impl<T> Outputs<T> {
    /// The output of that name.
    pub fn get(&self, name: &str) -> Option<&Tensor<T>> {
        self.tensors.iter().find(|(n, _)| n == name).map(|(_, t)| &**t)
    }
}

/// Why a run failed: inputs that are missing or misshapen, an id or position out of range, more steps than `max_steps`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}{message}", .op.as_ref().map(|op| format!("`{op}`: ")).unwrap_or_default())]
pub struct InterpError {
    /// The text of the operation, if one failed.
    pub op: Option<String>,
    /// Its place in the model text, if known.
    pub loc: Loc,
    /// What is wrong.
    pub message: String,
}

fn error(message: String) -> InterpError {
    InterpError { op: None, loc: Loc::default(), message }
}

/// Runs a function of a module that [verifies](crate::verify()).
pub fn run<T: Real>(
    module: &Module,
    func: &str,
    inputs: &Inputs<T>,
    options: &mut Options<'_, T>,
) -> Result<Outputs<T>, InterpError> {
    let func = module.func(func).ok_or_else(|| error(format!("there is no function {func:?}")))?;
    let replay = options.replay.iter().copied().collect();
    let outputs = Outputs { tensors: Vec::new(), trips: Vec::new(), loops: Vec::new() };
    let values = vec![None; func.values.len()];
    let mut machine = Machine { func, inputs, options, values, steps: Vec::new(), replay, outputs };
    let body = &func.regions[func.body];
    for (arg, &value) in func.args.iter().zip(&body.args) {
        let given = inputs.args.get(&arg.name);
        let tensor = checked(given, func.ty(value)).map_err(|e| error(format!("argument {:?} {e}", arg.name)))?;
        machine.set(value, tensor);
    }
    let yields = machine.region(func.body)?;
    let mut outputs = machine.outputs;
    outputs.tensors = func.outputs.iter().map(|o| o.name.clone()).zip(yields).collect();
    Ok(outputs)
}

fn checked<T: Real>(given: Option<&Rc<Tensor<T>>>, ty: &Type) -> Result<Rc<Tensor<T>>, String> {
    let tensor = given.ok_or_else(|| format!("is missing: it is {ty}"))?;
    if tensor.ty.dtype != ty.dtype || tensor.ty.shape != ty.shape || tensor.data.len() != ty.elements() {
        return Err(format!("must be {ty}, not {}", tensor.ty));
    }
    if tensor.ty == *ty {
        return Ok(tensor.clone());
    }
    Ok(Rc::new(Tensor { ty: ty.clone(), data: tensor.data.clone() }))
}

struct Machine<'m, 'o, T> {
    func: &'m Func,
    inputs: &'m Inputs<T>,
    options: &'m mut Options<'o, T>,
    values: Vec<Option<Rc<Tensor<T>>>>,
    steps: Vec<usize>,
    replay: VecDeque<usize>,
    outputs: Outputs<T>,
}

impl<T: Real> Machine<'_, '_, T> {
    fn set(&mut self, value: ValueId, tensor: Rc<Tensor<T>>) {
        self.values[value.index()] = Some(tensor);
    }
    /// The value for its use; a cache is moved out, since it has only one.
    fn take(&mut self, value: ValueId) -> Result<Rc<Tensor<T>>, InterpError> {
        let slot = &mut self.values[value.index()];
        let tensor = if self.func.ty(value).cache { slot.take() } else { slot.clone() };
        tensor.ok_or_else(|| error("a value is used before its definition: the module does not verify".into()))
    }
    fn region(&mut self, region: RegionId) -> Result<Vec<Rc<Tensor<T>>>, InterpError> {
        let func = self.func;
        let data = &func.regions[region];
        for &id in &data.ops {
            let op = &func.ops[id];
            let results = self.op(id, op).map_err(|mut e| {
                // The innermost operation is the one to name.
                if e.op.is_none() {
                    (e.op, e.loc) = (Some(print_op(func, id)), op.loc);
                }
                e
            })?;
            if let Some(observer) = &mut self.options.observer {
                observer(&Event { func, op: id, steps: &self.steps, results: &results });
            }
            for (&value, tensor) in op.results.iter().zip(results) {
                self.set(value, tensor);
            }
        }
        data.yields.iter().map(|&v| self.take(v)).collect()
    }
    fn op(&mut self, id: OpId, op: &Op) -> Result<Vec<Rc<Tensor<T>>>, InterpError> {
        let func = self.func;
        let mut operands = Vec::with_capacity(op.operands.len());
        for &operand in &op.operands {
            operands.push(self.take(operand)?);
        }
        let types: Vec<Type> = op.results.iter().map(|&v| func.ty(v).clone()).collect();
        match op.opcode {
            Opcode::Loop => return self.run_loop(id, op, operands, &types),
            Opcode::Param => {
                let name = op.text("name");
                let tensor = checked(self.inputs.params.get(name), &types[0]);
                return tensor.map(|t| vec![t]).map_err(|e| error(format!("parameter {name:?} {e}")));
            }
            Opcode::CacheUpdate => {
                let (x, pos, slot) = (operands[1].clone(), operands[2].clone(), operands[3].clone());
                let cache = Rc::unwrap_or_clone(operands.swap_remove(0));
                let (cache, view) =
                    attention::cache_update(cache, &x, pos.ints(), slot.ints(), &types[1]).map_err(error)?;
                return Ok(vec![Rc::new(cache), Rc::new(view)]);
            }
            _ => {}
        }
        let refs: Vec<&Tensor<T>> = operands.iter().map(|t| &**t).collect();
        let results = eval(op, &refs, &types).map_err(error)?;
        Ok(results.into_iter().map(Rc::new).collect())
    }
    fn run_loop(
        &mut self,
        id: OpId,
        op: &Op,
        operands: Vec<Rc<Tensor<T>>>,
        types: &[Type],
    ) -> Result<Vec<Rc<Tensor<T>>>, InterpError> {
        let func = self.func;
        let (steps, max_steps) = (operands[0].ints()[0], op.size("max_steps"));
        let requested = usize::try_from(steps).ok().filter(|&r| r <= max_steps);
        let requested = requested.ok_or_else(|| error(format!("{steps} steps, but max_steps is {max_steps}")))?;
        let region = &func.regions[op.regions[0]];
        let mut carried = operands[1..].to_vec();
        // Only `carried` may hold the caches, or they would be copied at each update.
        drop(operands);
        let mut stacked: Vec<Tensor<T>> = types[carried.len() + 1..].iter().map(Tensor::zeros).collect();
        let replay = self.replay.pop_front();
        let limit = replay.unwrap_or(requested).min(requested);
        let index = self.outputs.trips.len();
        self.outputs.trips.push(0);
        if self.options.record {
            self.outputs.loops.push(LoopStates { op: id, states: Vec::new() });
        }
        let mut trips = 0;
        while trips < limit {
            let step = if op.flag("reverse") { requested - 1 - trips } else { trips };
            self.set(region.args[0], Rc::new(Tensor::int(step as i32)));
            self.set(region.args[1], Rc::new(Tensor::bool(step + 1 == requested)));
            for (&arg, tensor) in region.args[2..].iter().zip(carried.drain(..)) {
                self.set(arg, tensor);
            }
            self.steps.push(step);
            let yields = self.region(op.regions[0])?;
            self.steps.pop();
            trips += 1;
            let mut yields = yields.into_iter();
            carried.extend(yields.by_ref().take(region.args.len() - 2));
            let done = op.flag("exit").then(|| yields.next()).flatten();
            for (stack, entry) in stacked.iter_mut().zip(yields) {
                stack.set_entry(step, &entry);
            }
            if self.options.record {
                let state = carried.iter().filter(|t| !t.ty.cache).cloned().collect();
                self.outputs.loops[index].states.push(state);
            }
            if replay.is_none() && done.is_some_and(|d| d.bools() == [true]) {
                break;
            }
        }
        self.outputs.trips[index] = trips;
        carried.push(Rc::new(Tensor::int(trips as i32)));
        carried.extend(stacked.into_iter().map(Rc::new));
        Ok(carried)
    }
}

/// Evaluates one operation other than `loop`, `param` and `cache_update`. `types` are the results' types.
///
/// The error says which operand is out of range. Operands must have the types that the op table asks for.
pub fn eval<T: Real>(op: &Op, operands: &[&Tensor<T>], types: &[Type]) -> Result<Vec<Tensor<T>>, String> {
    let one = |result: Result<Tensor<T>, String>| result.map(|t| vec![t]);
    if let Some(tensor) = elementwise::eval(op, operands, &types[0]) {
        return Ok(vec![tensor]);
    }
    if let Some(result) = shape::eval(op, operands, &types[0]) {
        return one(result);
    }
    let several = attention::eval(op, operands, types).or_else(|| loss::eval(op, operands, types));
    several
        .or_else(|| linear::eval(op, operands, types))
        .unwrap_or_else(|| Err("this operation needs a machine".into()))
}

#[cfg(test)]
mod tests;
#[cfg(test)]
mod training_tests;
