//! Random functions that can be differentiated.
use super::{Config, random_module};
use crate::builder::Builder;
use crate::module::Module;
use crate::ops::{Attr, Opcode};
use crate::types::DType;

/// A random module whose one function, `loss`, returns one number, from all of the outputs that it had.
pub fn random_loss(seed: u64) -> Module {
    let config = Config { ops: 20, caches: false, jumps: false, ..Config::default() };
    let mut module = random_module(seed, &config);
    let func = &mut module.funcs[0];
    func.name = "loss".into();
    let yields = std::mem::take(&mut func.regions[func.body].yields);
    func.outputs.clear();
    let mut b = Builder::new(func);
    let mut loss = b.constant(0.0, DType::F32);
    for value in yields {
        if b.func.ty(value).dtype == DType::F32 {
            let bounded = b.op(Opcode::Atan, &[value], vec![]);
            let sum = b.op(Opcode::SumTo, &[bounded], vec![Attr::shape(&[])]);
            loss = b.op(Opcode::Add, &[loss, sum], vec![]);
        }
    }
    b.output("loss", loss, false);
    module
}

/// The largest number of steps that every loop of the first function allows.
pub fn most_steps(module: &Module) -> usize {
    let func = &module.funcs[0];
    let loops = func.walk().into_iter().map(|(_, op)| &func.ops[op]).filter(|op| op.opcode == Opcode::Loop);
    loops.map(|op| op.size("max_steps")).min().unwrap_or(0)
}
