//! Taking a kernel's function apart: what every family looks for.
use crate::emit::Error;
use rdc_ir::program::Kernel;
use rdc_ir::{Func, OpId, Opcode, ValueDef, ValueId};

/// The only operation of that opcode in a kernel.
///
/// # Errors
/// If there is none or more than one.
pub fn only(kernel: &Kernel, opcode: Opcode) -> Result<OpId, Error> {
    let func = &kernel.func;
    let mut found = func.regions[func.body].ops.iter().filter(|&&op| func.ops[op].opcode == opcode);
    match (found.next(), found.next()) {
        (Some(&op), None) => Ok(op),
        _ => Err(Error::unsupported(&kernel.name, format!("not exactly one {}", opcode.info().mnemonic))),
    }
}

/// The pointer argument that a value is.
pub fn pointer(func: &Func, value: ValueId) -> Option<usize> {
    match func.values[value].def {
        ValueDef::Arg(region, index) if region == func.body => Some(index),
        _ => None,
    }
}
