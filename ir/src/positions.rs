//! Which axis of a value runs over the positions of a call, and what makes positions depend on each other.
//!
//! A function is compiled for S positions and may be given fewer (the rest is padding), or a sequence in several calls. Both leave the
//! numbers as they are only if what a position computes depends on nothing but the position itself and, through causal attention
//! over a cache, those before it. [`analyse`] follows the axis of positions from the arguments through every operation:
//!
//! ```text
//! %x = gather %table, %input_ids      f32[B, S, D]     axis 1
//! %t = transpose %x {perm = [0, 2, 1]}   f32[B, D, S]  axis 2
//! %f = reshape %x {shape = [B·S, D]}  f32[B·S, D]      axis 0, of which each row of the batch is a stretch of S
//! %m = reduce_sum %x {axis = 1}       mixes: "a sum over positions"
//! ```
//!
//! What mixes, other than such attention, is named with its place in the text; the function is then for whole sequences of exactly S
//! positions. So is one that treats positions by their number in the call (`x + w` with a weight that has an entry for each of them),
//! or that counts them (a sum over an axis that was broadcast to S).
//!
//! The end of a loop may depend on all positions of a call: `all(x)` counts as a *vote* if padding is out of it,
//! `all(or(x, le(pos + valid, positions(pos))))`, and if nothing but the loop's exit depends on it.
use crate::entity::{OpId, RegionId, ValueId};
use crate::module::{ArgRole, Func, Loc, Op};
use crate::ops::Opcode;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};

/// How the results of a function follow from the positions of a call.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Positions {
    /// Why calls are whole sequences of exactly S positions, if they must be; the other fields are then empty.
    pub whole: Option<Mixing>,
    /// Where positions are in the outputs that have them, by name.
    pub outputs: BTreeMap<String, Place>,
    /// Whether each value that the last loop carries has positions along its second axis if that may be of their number, and nowhere
    /// else.
    pub carried_second: bool,
}

/// An operation that makes positions depend on each other, or on their number.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mixing {
    /// Where the text says it.
    pub loc: Loc,
    /// What it is, as a noun: "a sum over positions".
    pub what: String,
}

/// Where the positions of a call are in a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Place {
    /// Along an axis of `outer · S · inner` entries, which is `[outer, S, inner]` in row-major order.
    Axis {
        /// The axis.
        axis: usize,
        /// Stretches of positions along it.
        outer: usize,
    },
    /// The tensor is of the last position of the call.
    Last,
}

impl std::fmt::Display for Positions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let Some(mixing) = &self.whole {
            writeln!(f, "whole: {mixing}")?;
        }
        for (name, place) in &self.outputs {
            match place {
                Place::Axis { axis, outer: 1 } => writeln!(f, "{name:?}: axis {axis}")?,
                Place::Axis { axis, outer } => writeln!(f, "{name:?}: axis {axis}, {outer} stretches")?,
                Place::Last => writeln!(f, "{name:?}: the last position")?,
            }
        }
        if self.carried_second { writeln!(f, "carried: axis 1") } else { Ok(()) }
    }
}

impl std::fmt::Display for Mixing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "line {}, column {}: {}", self.loc.line, self.loc.col, self.what)
    }
}

/// The number of positions that a function is compiled for: S of its ids, or of its first state.
pub fn length(func: &Func) -> Option<usize> {
    let of = |wanted: fn(&ArgRole) -> bool| {
        let index = func.args.iter().position(|a| wanted(&a.role))?;
        func.ty(func.regions[func.body].args[index]).shape.get(1).copied()
    };
    of(|r| *r == ArgRole::Ids).or_else(|| of(|r| matches!(r, ArgRole::State(_))))
}

/// Analyses a function of S ≥ 2 positions (axes of one entry are all alike), as the front end makes it. With `last_only` an output
/// may be a slice of the last position.
pub fn analyse(func: &Func, last_only: bool) -> Positions {
    let Some(s) = length(func).filter(|&s| s >= 2) else { return Positions::default() };
    let mut analysis = Analysis { func, s, last_only, states: HashMap::new() };
    analysis.function().unwrap_or_else(|mixing| Positions { whole: Some(mixing), ..Positions::default() })
}

/// An axis that runs over positions; see [`Place::Axis`].
#[derive(Clone, Copy, Debug, PartialEq)]
struct Axis {
    axis: usize,
    outer: usize,
}

/// What is known of a value.
#[derive(Clone, Debug, Default, PartialEq)]
struct State {
    /// The axis of positions, if the value has one.
    along: Option<Axis>,
    /// By axis, whether all entries along it are equal.
    even: Vec<bool>,
    /// Where positions voted, if the value is their vote.
    vote: Option<Loc>,
    /// Whether the value is of the last position, for outputs only.
    last: bool,
}

impl State {
    /// Nothing to do with positions.
    fn free(shape: &[usize]) -> State {
        State { even: shape.iter().map(|&n| n == 1).collect(), ..State::default() }
    }
    /// Positions along the second axis.
    fn second(shape: &[usize]) -> State {
        State { along: Some(Axis { axis: 1, outer: 1 }), ..State::free(shape) }
    }
    /// With `by` new axes in front, along which all is equal.
    fn behind(&self, by: usize) -> State {
        let mut state = self.clone();
        state.even.splice(0..0, vec![true; by]);
        state.along = state.along.map(|a| Axis { axis: a.axis + by, ..a });
        state
    }
}

const COUNT: &str = "the number of positions of a call";
const EACH: &str = "an entry for each position of a call";

type Rule<T> = Result<T, String>;

struct Analysis<'a> {
    func: &'a Func,
    s: usize,
    last_only: bool,
    states: HashMap<ValueId, State>,
}

impl Analysis<'_> {
    fn function(&mut self) -> Result<Positions, Mixing> {
        let func = self.func;
        let body = &func.regions[func.body];
        for (arg, &value) in func.args.iter().zip(&body.args) {
            let shape = &func.ty(value).shape;
            let runs = matches!(arg.role, ArgRole::Ids | ArgRole::Labels | ArgRole::State(_) | ArgRole::Input)
                && shape.get(1) == Some(&self.s);
            self.states.insert(value, if runs { State::second(shape) } else { State::free(shape) });
        }
        self.region(func.body)?;
        let mut positions = Positions::default();
        for (output, value) in func.outputs.iter().zip(&body.yields) {
            let state = self.unvoted(*value)?;
            let place = state.along.map(|a| Place::Axis { axis: a.axis, outer: a.outer });
            if let Some(place) = if state.last { Some(Place::Last) } else { place } {
                positions.outputs.insert(output.name.clone(), place);
            }
        }
        let last = body.ops.iter().rev().find(|&&op| func.ops[op].opcode == Opcode::Loop);
        let mut carried = last.into_iter().flat_map(|&op| &func.regions[func.ops[op].regions[0]].args);
        positions.carried_second = carried.all(|&arg| match (self.state(arg).along, func.ty(arg).shape.get(1)) {
            (Some(along), _) => along == Axis { axis: 1, outer: 1 },
            (None, Some(&n)) => func.ty(arg).cache || (n != 1 && n != self.s),
            (None, None) => true,
        });
        Ok(positions)
    }
    fn state(&self, value: ValueId) -> State {
        self.states.get(&value).cloned().unwrap_or_else(|| State::free(&self.func.ty(value).shape))
    }
    /// The state of a value that is more than a reason to end a loop.
    fn unvoted(&self, value: ValueId) -> Result<State, Mixing> {
        let state = self.state(value);
        match state.vote {
            Some(loc) => Err(Mixing { loc, what: "`all` over positions, for more than the end of the loop".into() }),
            None => Ok(state),
        }
    }
    fn region(&mut self, region: RegionId) -> Result<(), Mixing> {
        for &id in &self.func.regions[region].ops {
            let op = &self.func.ops[id];
            if op.opcode == Opcode::Loop {
                self.repeat(id)?;
                continue;
            }
            // Of truth values a vote is part of, a vote is made.
            let scalar = op.opcode.is_elementwise() && self.func.ty(op.results[0]).rank() == 0;
            let mut operands = Vec::new();
            for &value in &op.operands {
                operands.push(if scalar { self.state(value) } else { self.unvoted(value)? });
            }
            let vote = operands.iter().find_map(|s| s.vote);
            let mixing = |what| Mixing { loc: op.loc, what };
            let state = self.rule(op, &operands).map_err(mixing)?;
            let state = State { vote: state.vote.or(vote), ..state };
            for &value in &op.results {
                let state = match op.opcode {
                    // A cache and the view of it: keys and values of earlier positions, for causal attention only.
                    Opcode::CacheUpdate => State::free(&self.func.ty(value).shape),
                    _ => state.clone(),
                };
                self.states.insert(value, state);
            }
        }
        Ok(())
    }
    /// A loop: the states of carried values are those that hold before and after every iteration.
    fn repeat(&mut self, id: OpId) -> Result<(), Mixing> {
        let op = &self.func.ops[id];
        let (inits, region) = (&op.operands[1..], op.regions[0]);
        let (args, yields) = (&self.func.regions[region].args, &self.func.regions[region].yields);
        let mut carried = inits.iter().map(|&v| self.unvoted(v)).collect::<Result<Vec<_>, _>>()?;
        loop {
            for (&arg, state) in args[2..].iter().zip(&carried) {
                self.states.insert(arg, state.clone());
            }
            self.region(region)?;
            let mut next = Vec::new();
            for ((&arg, &value), before) in args[2..].iter().zip(yields).zip(&carried) {
                let joined = self.elementwise(&self.func.ty(arg).shape, &[before.clone(), self.unvoted(value)?]);
                next.push(joined.map_err(|what| Mixing { loc: op.loc, what })?);
            }
            if next == carried {
                break;
            }
            carried = next;
        }
        let stacked = &yields[inits.len() + usize::from(op.flag("exit"))..];
        let stacked = stacked.iter().map(|&v| {
            let mut state = self.unvoted(v)?.behind(1);
            state.even[0] = false;
            Ok(state)
        });
        let stacked = stacked.collect::<Result<Vec<_>, Mixing>>()?;
        let results = carried.into_iter().chain([State::free(&[])]).chain(stacked);
        self.states.extend(op.results.iter().copied().zip(results));
        Ok(())
    }
    /// What an axis of a value counts: whether a sum along it is about the number of positions.
    fn counts(&self, state: &State, shape: &[usize], axis: usize) -> bool {
        state.even[axis] && shape[axis] > 1 && shape[axis].is_multiple_of(self.s)
    }
    /// The state of the results of an operation, or how it mixes positions.
    fn rule(&self, op: &Op, operands: &[State]) -> Rule<State> {
        use Opcode::*;
        let shape = |index: usize| &self.func.ty(op.operands[index]).shape[..];
        let out = &self.func.ty(op.results[0]).shape[..];
        let along = |index: usize| operands[index].along.map(|a| a.axis);
        let mut state = operands.first().cloned().unwrap_or_else(|| State::free(out));
        match op.opcode {
            opcode if opcode.is_elementwise() => self.elementwise(out, operands),
            Positions => Ok(State::second(out)),
            Reshape => self.reshape(&state, shape(0), out),
            Transpose => {
                let perm = op.ints("perm");
                let to = |axis| perm.iter().position(|&p| p as usize == axis).unwrap_or(axis);
                state.along = state.along.map(|a| Axis { axis: to(a.axis), ..a });
                state.even = perm.iter().map(|&p| operands[0].even[p as usize]).collect();
                Ok(state)
            }
            Broadcast => Ok(state.behind(out.len() - state.even.len())),
            Slice if along(0) == Some(op.size("axis")) && out != shape(0) => {
                let last = op.size("start") + 1 == self.s && shape(0)[op.size("axis")] == self.s;
                if self.last_only && last && self.only_an_output(op.results[0]) {
                    return Ok(State { last: true, ..State::free(out) });
                }
                Err("a slice of positions".into())
            }
            Slice => Ok(state),
            Concat | Pad => {
                let axis = op.size("axis");
                let mut joined = self.elementwise_but(out, operands, Some(axis))?;
                if joined.along.is_some_and(|a| a.axis == axis) && out != shape(0) {
                    return Err(format!("a {} along positions", op.opcode.info().mnemonic));
                }
                joined.even[axis] = false;
                Ok(joined)
            }
            Index if along(0) == Some(0) => Err("a choice of one of the positions".into()),
            Index => {
                state.even.remove(0);
                state.along = state.along.map(|a| Axis { axis: a.axis - 1, ..a });
                Ok(state)
            }
            OneHot => {
                state.even.push(false);
                Ok(state)
            }
            ReduceSum | ReduceMax => self.reduce(op, &state, shape(0), &[op.size("axis")], op.flag("keep")),
            SumTo => {
                let by = shape(0).len() - out.len();
                let summed = (0..shape(0).len()).filter(|&a| a < by || (out[a - by] == 1 && shape(0)[a] > 1));
                let mut state = self.reduce(op, &state, shape(0), &summed.collect::<Vec<_>>(), true)?;
                state.even.drain(..by);
                state.along = state.along.map(|a| Axis { axis: a.axis - by, ..a });
                Ok(state)
            }
            All if state.along.is_none() => Ok(State::free(&[])),
            All if state.along == Some(Axis { axis: 1, outer: 1 }) => match self.spares_padding(op.operands[0]) {
                true => Ok(State { vote: Some(op.loc), ..State::free(&[]) }),
                false => Err("`all` over positions, padding among them".into()),
            },
            All => Err("`all` over positions that are not the second axis".into()),
            Gather if operands[0].along.is_some() => Err("a table with a row for each position of a call".into()),
            Gather => {
                let mut state = operands[1].clone();
                state.even.push(false);
                Ok(state)
            }
            Matmul => self.matmul(op, operands),
            RmsNorm | LayerNorm | Softmax => {
                let last = out.len() - 1;
                if along(0) == Some(last) || operands[1..].iter().any(|s| s.along.is_some()) {
                    return Err(format!("a {} over positions", op.opcode.info().mnemonic));
                }
                if op.opcode == Softmax && self.counts(&state, out, last) {
                    return Err(COUNT.into());
                }
                state.even[last] = false;
                Ok(state)
            }
            Rope => self.second(&operands[0], shape(0), "rope"),
            CacheUpdate => self.second(&operands[1], shape(1), "the keys and values of attention"),
            Attention => {
                let queries = self.second(&operands[0], shape(0), "the queries of attention")?;
                match operands[1..3].iter().any(|s| s.along.is_some()) {
                    true if op.flag("causal") => Err("causal attention without a cache".into()),
                    true => Err("attention that is not causal".into()),
                    false => Ok(queries),
                }
            }
            _ if operands.iter().any(|s| s.along.is_some()) => Err(op.opcode.info().mnemonic.into()),
            _ => Ok(State::free(out)),
        }
    }
    fn elementwise(&self, shape: &[usize], operands: &[State]) -> Rule<State> {
        self.elementwise_but(shape, operands, None)
    }
    /// Values combined element by element under a shape that they broadcast to; `joined` is an axis along which they differ in size.
    fn elementwise_but(&self, shape: &[usize], operands: &[State], joined: Option<usize>) -> Rule<State> {
        let operands: Vec<State> = operands.iter().map(|s| s.behind(shape.len() - s.even.len())).collect();
        let along = operands.iter().find_map(|s| s.along);
        for state in along.iter().flat_map(|_| &operands) {
            match (state.along, along) {
                (Some(a), Some(b)) if a != b => return Err("positions of one axis with those of another".into()),
                (None, Some(a)) if !state.even[a.axis] && joined != Some(a.axis) => return Err(EACH.into()),
                _ => {}
            }
        }
        let even = (0..shape.len()).map(|axis| operands.iter().all(|s| s.even[axis])).collect();
        Ok(State { along, even, ..State::default() })
    }
    fn reduce(&self, op: &Op, state: &State, shape: &[usize], axes: &[usize], keep: bool) -> Rule<State> {
        let sum = op.opcode != Opcode::ReduceMax;
        let mut state = state.clone();
        for &axis in axes.iter().rev() {
            if state.along.is_some_and(|a| a.axis == axis) {
                return Err(format!("a {} over positions", if sum { "sum" } else { "maximum" }));
            }
            if sum && self.counts(&state, shape, axis) {
                return Err(COUNT.into());
            }
            if keep {
                state.even[axis] = true;
            } else {
                state.even.remove(axis);
                state.along = state.along.map(|a| Axis { axis: a.axis - usize::from(a.axis > axis), ..a });
            }
        }
        Ok(state)
    }
    fn reshape(&self, state: &State, from: &[usize], to: &[usize]) -> Rule<State> {
        let product = |sizes: &[usize]| sizes.iter().product::<usize>();
        let along = match state.along {
            None => None,
            Some(a) => {
                // The whole is [before, S, after]; an axis holds all positions if its sizes before and after divide these.
                let before = product(&from[..a.axis]) * a.outer;
                let after = product(from) / (before * self.s);
                let fits = |&axis: &usize| {
                    let (p, q) = (product(&to[..axis]), product(&to[axis + 1..]));
                    before.is_multiple_of(p) && after.is_multiple_of(q)
                };
                let axis = (0..to.len()).find(fits).ok_or("a reshape that cuts through positions")?;
                Some(Axis { axis, outer: before / product(&to[..axis]) })
            }
        };
        // Axes go over into each other in groups of equal size.
        let (mut even, mut i, mut j) = (Vec::new(), 0, 0);
        while j < to.len() {
            let (first, mut a, mut b) = (i, 1, to[j]);
            j += 1;
            while a != b {
                if a < b {
                    a *= from[i];
                    i += 1;
                } else {
                    b *= to[j];
                    j += 1;
                }
            }
            even.resize(j, (first..i).all(|k| from[k] == 1 || state.even[k]));
        }
        Ok(State { along, even, ..State::default() })
    }
    fn matmul(&self, op: &Op, operands: &[State]) -> Rule<State> {
        let [a, b] = operands else { return Err("a product".into()) };
        let (rank, wide) = (a.even.len(), b.even.len());
        let (m, ka) = if op.flag("trans_a") { (rank - 1, rank - 2) } else { (rank - 2, rank - 1) };
        let (n, kb) = if op.flag("trans_b") { (wide - 2, wide - 1) } else { (wide - 1, wide - 2) };
        // Where an axis of an operand is in the result; nowhere if it is summed over.
        let place = |along: Option<Axis>, kept: usize, to: usize, summed: usize| match along {
            Some(x) if x.axis == summed => Err("a product that sums over positions".to_string()),
            Some(x) => Ok(Some(Axis { axis: if x.axis == kept { to } else { x.axis }, ..x })),
            None => Ok(None),
        };
        let (left, right) = (place(a.along, m, rank - 2, ka)?, place(b.along, n, rank - 1, kb)?);
        let inner = self.func.ty(op.operands[0]).shape[ka];
        if a.even[ka] && b.even[kb] && inner > 1 && inner.is_multiple_of(self.s) {
            return Err(COUNT.into());
        }
        let along = match (left, right) {
            (Some(x), Some(y)) if x != y => return Err("a product of positions with positions".into()),
            (x, y) => x.or(y),
        };
        if let Some(x) = along.filter(|x| x.axis < rank - 2 && wide > 2)
            && ((left.is_none() && !a.even[x.axis]) || (right.is_none() && !b.even[x.axis]))
        {
            return Err(EACH.into());
        }
        let mut even: Vec<bool> = (0..rank - 2).map(|i| a.even[i] && (wide == 2 || b.even[i])).collect();
        even.extend([a.even[m], b.even[n]]);
        Ok(State { along, even, ..State::default() })
    }
    /// For operations that take the second axis as the positions: it must be.
    fn second(&self, state: &State, shape: &[usize], what: &str) -> Rule<State> {
        match state.along {
            Some(Axis { axis: 1, outer: 1 }) => Ok(State::second(shape)),
            None if state.even[1] && shape[1] == self.s => Ok(State::second(shape)),
            _ => Err(format!("{what} with positions that are not the second axis")),
        }
    }
    /// Whether padding has no say in `all` of a value: one side of an `or` is true there.
    fn spares_padding(&self, value: ValueId) -> bool {
        let Some(or) = self.func.defined_by(value, Opcode::Or) else { return false };
        or.operands.iter().any(|&side| {
            let padding = self.func.defined_by(self.func.through_reshapes(side), Opcode::Le);
            padding.is_some_and(|le| {
                let end = self.func.defined_by(self.func.through_reshapes(le.operands[0]), Opcode::Add);
                let args = &self.func.regions[self.func.body].args;
                let role = |value: &ValueId| args.iter().position(|a| a == value).map(|i| self.func.args[i].role);
                let roles = end.map(|add| [role(&add.operands[0]), role(&add.operands[1])]);
                roles == Some([Some(ArgRole::Position), Some(ArgRole::Valid)])
                    && self.func.defined_by(le.operands[1], Opcode::Positions).is_some()
            })
        })
    }
    fn only_an_output(&self, value: ValueId) -> bool {
        let func = self.func;
        !func.walk().iter().any(|&(_, op)| {
            let op = &func.ops[op];
            let yields = op.regions.iter().flat_map(|&r| &func.regions[r].yields);
            op.operands.iter().chain(yields).any(|&v| v == value)
        })
    }
}
