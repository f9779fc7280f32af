//! Small loss functions, their gradients by the pass, and by finite differences.
use rdc_ir::interp::{Inputs, Options, Outputs, Tensor, run};
use rdc_ir::testing::Rng;
use rdc_ir::verify::verify_text;
use rdc_ir::{ArgRole, Attr, Builder, DType, Func, Init, Loc, Module, Opcode, Param, Type, ValueId};
use rdc_passes::differentiate;
use std::collections::HashMap;

/// A loss function in the making, with values for its parameters and arguments.
pub struct Build<'f> {
    pub b: Builder<'f>,
    pub rng: Rng,
    pub params: Vec<Param>,
    pub inputs: Inputs<f64>,
}

pub fn int(n: usize) -> Attr {
    Attr::Int(n as i64)
}

pub fn ints(values: &[usize]) -> Attr {
    Attr::Ints(values.iter().map(|&v| v as i64).collect())
}

impl Build<'_> {
    /// A random size in 1..=most.
    pub fn size(&mut self, most: usize) -> usize {
        1 + self.rng.below(most)
    }
    pub fn tensor(&mut self, shape: &[usize], (low, high): (f64, f64)) -> Tensor<f64> {
        let ty = Type::f32(shape);
        let values = (0..ty.elements()).map(|_| low + (high - low) * (self.rng.unit() as f64 + 1.0) / 2.0).collect();
        Tensor::floats_of(ty, values)
    }
    /// A parameter with elements in -1.5..1.5.
    pub fn param(&mut self, shape: &[usize]) -> ValueId {
        self.param_in(shape, (-1.5, 1.5))
    }
    /// A parameter with elements in a range.
    pub fn param_in(&mut self, shape: &[usize], range: (f64, f64)) -> ValueId {
        let name = format!("p{}", self.params.len());
        let tensor = self.tensor(shape, range);
        self.inputs.params.insert(name.clone(), tensor.into());
        self.params.push(param(&name, Type::f32(shape)));
        self.b.param(&name, Type::f32(shape))
    }
    /// An f32 argument, which has no gradient.
    pub fn input(&mut self, shape: &[usize]) -> ValueId {
        let tensor = self.tensor(shape, (-1.5, 1.5));
        self.argument(tensor)
    }
    /// An i32 argument with elements in a range.
    pub fn ids(&mut self, shape: &[usize], below: usize) -> ValueId {
        let count = shape.iter().product();
        let values: Vec<i32> = (0..count).map(|_| self.rng.below(below) as i32).collect();
        self.argument(Tensor::from_i32(shape, &values))
    }
    pub fn argument(&mut self, tensor: Tensor<f64>) -> ValueId {
        let name = format!("a{}", self.inputs.args.len());
        let value = self.b.arg(name.clone(), ArgRole::Input, tensor.ty.clone());
        self.inputs.args.insert(name, tensor.into());
        value
    }
    #[track_caller]
    pub fn op(&mut self, opcode: Opcode, operands: &[ValueId], attrs: Vec<Attr>) -> ValueId {
        self.b.op(opcode, operands, attrs)
    }
    #[track_caller]
    pub fn map(&mut self, opcode: Opcode, operands: &[ValueId]) -> ValueId {
        self.op(opcode, operands, vec![])
    }
    pub fn shape(&self, value: ValueId) -> Vec<usize> {
        self.b.func.ty(value).shape.clone()
    }
    /// The sum of all elements, each with a random weight.
    pub fn weighted_sum(&mut self, value: ValueId) -> ValueId {
        let n = self.b.func.ty(value).elements();
        let weights = self.input(&[n]);
        let flat = self.op(Opcode::Reshape, &[value], vec![ints(&[n])]);
        let product = self.map(Opcode::Mul, &[flat, weights]);
        self.op(Opcode::ReduceSum, &[product], vec![Attr::Int(0), Attr::Bool(false)])
    }
    pub fn number(&mut self, value: f64) -> ValueId {
        self.b.constant(value, DType::F32)
    }
}

fn param(name: &str, ty: Type) -> Param {
    Param {
        name: name.into(),
        aliases: vec![],
        ty,
        init: Init::Constant(0.0),
        decay: false,
        in_stack: false,
        state: false,
        loc: Loc::default(),
    }
}

/// A module with one function `loss`, whose result the closure returns, and inputs for it.
pub fn loss(seed: u64, build: impl FnOnce(&mut Build<'_>) -> ValueId) -> (Module, Inputs<f64>) {
    let mut func = Func::new("loss");
    let b = Builder::new(&mut func);
    let inputs = Inputs { params: HashMap::new(), args: HashMap::new() };
    let mut build_state = Build { b, rng: Rng::new(seed), params: Vec::new(), inputs };
    let value = build(&mut build_state);
    build_state.b.output("loss", value, false);
    let Build { params, inputs, .. } = build_state;
    let mut module = Module { name: "m".into(), ..Module::default() };
    params.into_iter().for_each(|p| _ = module.params.push(p));
    module.funcs.push(func);
    assert_eq!(verify_text(&module), None, "seed {seed}\n{module}");
    (module, inputs)
}

#[track_caller]
pub fn execute(module: &Module, func: &str, inputs: &Inputs<f64>) -> Outputs<f64> {
    match run(module, func, inputs, &mut Options::default()) {
        Ok(outputs) => outputs,
        Err(e) => panic!("{e}\n{module}"),
    }
}

/// Adds the gradient and verifies the module.
#[track_caller]
pub fn with_gradient(module: &Module, options: &differentiate::Options) -> Module {
    let mut module = module.clone();
    if let Err(e) = differentiate::run(&mut module, options) {
        panic!("{e}\n{module}");
    }
    assert_eq!(verify_text(&module), None, "{module}");
    module
}

/// Runs `grad` with so many steps without and with gradient.
#[track_caller]
pub fn run_gradient(module: &Module, inputs: &Inputs<f64>, n: usize, k: usize) -> Outputs<f64> {
    let mut inputs = inputs.clone();
    inputs.args.insert("no_grad_steps".into(), Tensor::int(n as i32).into());
    inputs.args.insert("grad_steps".into(), Tensor::int(k as i32).into());
    execute(module, "grad", &inputs)
}

/// The derivatives of the output `loss` of a function by the elements of a parameter: central differences of fourth order.
pub fn differences(module: &Module, func: &str, inputs: &Inputs<f64>, param: &str) -> Vec<f64> {
    const STEP: f64 = 1e-4;
    let tensor = inputs.params[param].clone();
    let mut inputs = inputs.clone();
    let mut at = |index: usize, offset: f64| {
        let mut values = tensor.floats().to_vec();
        values[index] += offset;
        inputs.params.insert(param.into(), Tensor::floats_of(tensor.ty.clone(), values).into());
        execute(module, func, &inputs).get("loss").unwrap().floats()[0]
    };
    let mut slope = |i| {
        let (near, far) = (at(i, STEP) - at(i, -STEP), at(i, 2.0 * STEP) - at(i, -2.0 * STEP));
        (8.0 * near - far) / (12.0 * STEP)
    };
    (0..tensor.floats().len()).map(&mut slope).collect()
}

/// Fails if two gradients differ by more than a fraction of the largest element (or of 1e-3, for gradients that are zero).
#[track_caller]
pub fn assert_close(found: &[f64], expected: &[f64], tolerance: f64, what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let size = expected.iter().fold(1e-3f64, |m, v| m.max(v.abs()));
    for (i, (f, e)) in found.iter().zip(expected).enumerate() {
        assert!((f - e).abs() <= tolerance * size, "{what}, element {i}: {f}, expected {e}");
    }
}
