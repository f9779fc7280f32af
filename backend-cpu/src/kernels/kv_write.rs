//! Writes the keys and values of a chunk into single-slot caches.
//!
//! Algorithm: for each token and head, the chain slice → bias → rope in registers, stored at the token's position of
//! the head-major cache. Tiling: a task is a run of tokens. Bound: memory; the projection is read once and the cache
//! rows are written once.
use super::heads::{Token, Update};
use crate::emit::{Emitter, Error};
use rdc_ir::Opcode;
use rdc_ir::program::{Kernel, KernelKind, Tiling};
use rdc_passes::tile::Cpu;

/// The kernel's MLIR module.
pub fn emit(cpu: &Cpu, kernel: &Kernel) -> Result<String, Error> {
    let func = &kernel.func;
    let fail = |what: &str| Error::unsupported(&kernel.name, what);
    let (KernelKind::KvWrite { tokens }, Tiling::Rows { rows_per_task }) = (kernel.kind, kernel.tiling) else {
        return Err(fail("a kernel of another kind or tiling than kv_write"));
    };
    let body = &func.regions[func.body];
    if body.yields.iter().any(|&v| !func.ty(v).cache) || rows_per_task == 0 {
        return Err(fail("results besides the caches"));
    }
    let mut updates = Vec::new();
    for &op in &body.ops {
        let op = &func.ops[op];
        if op.opcode == Opcode::CacheUpdate {
            updates.push((Update::new(kernel, op)?, func.ty(op.operands[1]).shape[1]));
        }
    }
    let mut e = Emitter::new(&kernel.name, func.args.len(), cpu.lanes);
    e.items(rows_per_task, tokens, |e, index| {
        for (update, steps) in &updates {
            let token = Token::new(e, index, *steps);
            let heads = (e.i64(0), e.i64(update.heads()));
            update.emit(e, token, heads);
        }
    });
    Ok(e.finish())
}
