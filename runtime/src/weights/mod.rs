//! Makes the bytes of weights by their recipes ([`WeightSource`]), piece by piece: a 14 GB checkpoint becomes an artifact in a
//! few MiB of memory.
mod pack;
mod source;

pub use source::{CheckpointSource, DrawnSource, ParamSource};

use crate::Error;
use half::bf16;
use rdc_ir::packing::Packing;
use rdc_ir::program::{Piece, Weight, WeightSource};

/// Bytes that are handed to the sink at a time, about.
const BATCH: usize = 8 << 20;
/// Below this, starting threads costs more than they save.
const PARALLEL_FROM: usize = 256 << 10;

/// Makes the bytes of a weight, in order, and hands them to `sink` in batches; all together they are `weight.ty.bytes()`.
///
/// # Errors
/// If the recipe does not make the weight's type, the source lacks a parameter or has another shape, or the sink fails.
pub fn produce(
    weight: &Weight,
    params: &dyn ParamSource,
    sink: &mut dyn FnMut(&[u8]) -> Result<(), Error>,
) -> Result<(), Error> {
    crate::validate::weight(weight).map_err(|m| Error::Program(format!("weight {}: {m}", weight.name)))?;
    match &weight.source {
        WeightSource::Param { name, via_bf16 } => {
            let total = weight.ty.elements();
            in_batches(total, 4, 1, sink, &|start, out| {
                let values = bytemuck::cast_slice_mut::<u8, f32>(out);
                params.read(name, start, values)?;
                if *via_bf16 {
                    values.iter_mut().for_each(|x| *x = bf16::from_f32(*x).to_f32());
                }
                Ok(())
            })
        }
        WeightSource::State { .. } => in_batches(weight.ty.elements(), 4, 1, sink, &|_, out| {
            out.fill(0);
            Ok(())
        }),
        WeightSource::Packed { pieces, n, k, nr, parts } => {
            let packing = Packing::new(weight.ty.dtype, *n, *k, *nr, *parts);
            let packed = pack::Packed::new(weight.ty.dtype, pieces, packing, params)?;
            in_batches(packed.panels(), packed.panel_bytes(), 1, sink, &|first, out| packed.fill(first, out))
        }
        WeightSource::Scales { pieces } => in_batches(weight.ty.elements(), 4, 64, sink, &|start, out| {
            pack::scales(pieces, start, params, bytemuck::cast_slice_mut(out))
        }),
        WeightSource::RopeTable { len, dim, base } => {
            sink(bytemuck::cast_slice(&rdc_ir::tables::rope_table(*len, *dim, *base)))
        }
        WeightSource::SinusoidTable { len, dim, base } => {
            sink(bytemuck::cast_slice(&rdc_ir::tables::sinusoid_table(*len, *dim, *base)))
        }
    }
}

/// Makes a whole weight in memory.
///
/// # Errors
/// As [`produce`]; also if it does not fill `out`.
pub fn fill(weight: &Weight, params: &dyn ParamSource, out: &mut [u8]) -> Result<(), Error> {
    let mut at = 0;
    produce(weight, params, &mut |bytes| {
        let place = out.get_mut(at..at + bytes.len());
        let place = place.ok_or_else(|| Error::Program(format!("weight {} does not fit its type", weight.name)))?;
        place.copy_from_slice(bytes);
        at += bytes.len();
        Ok(())
    })?;
    if at != out.len() {
        return Err(Error::Program(format!("weight {} does not fill its type", weight.name)));
    }
    Ok(())
}

/// Makes items from an index on into bytes for them.
type Make<'a> = dyn Fn(usize, &mut [u8]) -> Result<(), Error> + Sync + 'a;

/// Hands over `count` items of `size` bytes, made by `make(first, bytes)` on all threads where that pays. `effort` is about how
/// many bytes are read for each byte made.
fn in_batches(
    count: usize,
    size: usize,
    effort: usize,
    sink: &mut dyn FnMut(&[u8]) -> Result<(), Error>,
    make: &Make,
) -> Result<(), Error> {
    let per_batch = (BATCH / size.max(1)).clamp(1, count.max(1));
    // As f32, for its alignment.
    let mut batch = vec![0f32; (per_batch * size).div_ceil(4)];
    let threads = crate::threads::default_threads();
    for first in (0..count).step_by(per_batch) {
        let items = per_batch.min(count - first);
        let bytes = &mut bytemuck::cast_slice_mut(&mut batch)[..items * size];
        if bytes.len() * effort < PARALLEL_FROM {
            make(first, bytes)?;
        } else {
            let part = items.div_ceil(threads);
            std::thread::scope(|scope| {
                let workers: Vec<_> = bytes
                    .chunks_mut(part * size)
                    .enumerate()
                    .map(|(i, bytes)| scope.spawn(move || make(first + i * part, bytes)))
                    .collect();
                workers.into_iter().try_for_each(|worker| match worker.join() {
                    Ok(result) => result,
                    Err(panic) => std::panic::resume_unwind(panic),
                })
            })?;
        }
        sink(bytes)?;
    }
    Ok(())
}

/// The whole row of the parameter that row `index` of the stacked pieces lies in.
fn read_whole_row<'a>(
    pieces: &[Piece],
    index: usize,
    params: &dyn ParamSource,
    row: &'a mut Vec<f32>,
) -> Result<&'a [f32], Error> {
    let (piece, at) = locate(pieces, index)?;
    row.resize(params.columns(&piece.param)?, 0.0);
    params.read(&piece.param, at * row.len(), row)?;
    Ok(row)
}

/// The piece that a row of the stack lies in, and its row in the parameter.
fn locate(pieces: &[Piece], mut index: usize) -> Result<(&Piece, usize), Error> {
    for piece in pieces {
        let rows = piece.rows.1.saturating_sub(piece.rows.0);
        if index < rows {
            return Ok((piece, piece.rows.0 + index));
        }
        index -= rows;
    }
    Err(Error::Program(format!("row {index} lies beyond the pieces of a weight")))
}

#[cfg(test)]
mod tests;
