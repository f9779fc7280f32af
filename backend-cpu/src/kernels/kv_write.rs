//! Writes the keys and values of a chunk into single-slot caches.
//!
//! Algorithm: for each token and head, the chain slice → bias → rope in registers, stored at the token's position of
//! the head-major cache. Tiling: a task is a run of tokens. Bound: memory; the projection is read once and the cache
//! rows are written once.
use super::heads::{Token, write_cache};
use super::unsupported;
use crate::emit::{Emitter, Error};
use rdc_ir::program::body::KvWrite;
use rdc_ir::program::{Kernel, Tiling};
use rdc_passes::tile::Cpu;

/// The kernel's MLIR module.
pub fn emit(cpu: &Cpu, kernel: &Kernel, body: &KvWrite) -> Result<String, Error> {
    let Tiling::Rows { rows_per_task: tokens_per_task @ 1.. } = kernel.tiling else {
        return unsupported(kernel, "cache writes that are cut otherwise than into tokens");
    };
    let mut e = Emitter::new(&kernel.name, kernel.pointers.len(), cpu.lanes);
    e.items(tokens_per_task, body.tokens, |e, index| {
        for write in &body.writes {
            let token = Token::new(e, index, write.steps);
            let heads = (e.i64(0), e.i64(write.chain.heads));
            write_cache(e, write, token, heads);
        }
    });
    Ok(e.finish())
}
