//! Operands of contractions in bf16, for machines that multiply it faster than f32.
//!
//! Products, attentions and their derivatives take casts of their operands, and what is written to a bf16 cache is cast
//! before the write instead of by it:
//!
//! ```text
//! %y = matmul %x, %w {…} : f32[2, 8]           %0 = cast %x {dtype = bf16} : bf16[2, 4]
//!                                        →     %1 = cast %w {dtype = bf16} : bf16[8, 4]
//!                                              %y = matmul %0, %1 {…} : f32[2, 8]
//! ```
//!
//! They sum in f32 and give f32, and everything else stays f32: this is the only loss. A cast is an operation like others, which
//! may move out of a loop, meet an equal one and fuse with what makes its operand. Attention over a cache of f32 stays as it
//! is: casts of a view would read all of it to write a copy.
use crate::rewrite::rewrite;
use rdc_ir::{Attr, DType, Func, Module, Op, Opcode, ValueId};
use std::collections::HashMap;

/// Casts the operands of contractions in every function.
pub fn run(module: &mut Module) {
    for func in &mut module.funcs {
        let mut casts = HashMap::new();
        rewrite(func, |b, id| {
            for &index in operands(b.func, &b.func.ops[id]) {
                let Some(&value) = b.func.ops[id].operands.get(index) else { continue };
                if b.func.ty(value).dtype != DType::F32 {
                    continue;
                }
                let cast = *casts
                    .entry((b.region(), value))
                    .or_insert_with(|| b.op(Opcode::Cast, &[value], vec![Attr::DType(DType::BF16)]));
                b.func.ops[id].operands[index] = cast;
            }
            None
        });
    }
}

/// Which operands of an operation are cast.
fn operands(func: &Func, op: &Op) -> &'static [usize] {
    let in_f32_cache = |v: ValueId| func.ty(v).dtype == DType::F32 && func.defined_by(v, Opcode::CacheUpdate).is_some();
    match op.opcode {
        Opcode::Matmul => &[0, 1],
        Opcode::PackedMatmul => &[0],
        Opcode::Attention if op.operands[1..3].iter().any(|&v| in_f32_cache(v)) => &[],
        Opcode::Attention => &[0, 1, 2],
        // The log-sum-exp is no factor.
        Opcode::AttentionGrad => &[0, 1, 2, 4],
        Opcode::CacheUpdate if func.ty(op.operands[0]).dtype == DType::BF16 => &[1],
        _ => &[],
    }
}
