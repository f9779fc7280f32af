//! The derivatives of slices are pads, and their sum is what was sliced: side by side, without additions.
use rdc_ir::{Attr, Builder, OpId, Opcode, ValueId};

/// Pads that one sum is looked through for, at most.
const MOST: usize = 16;

/// A pad's operand and where it lies on which axis of what size.
struct Pad {
    x: ValueId,
    axis: usize,
    start: usize,
    end: usize,
    size: usize,
}

/// The result of an `add` that sums pads whose operands lie side by side.
pub fn add(b: &mut Builder, op: OpId) -> Option<Vec<ValueId>> {
    let mut pads = Vec::new();
    collect(b, b.func.ops[op].results[0], &mut pads)?;
    pads.sort_by_key(|p| p.start);
    let (first, last) = (pads.first()?, pads.last()?);
    let together = |p: &[Pad]| p[0].end == p[1].start && p[0].axis == p[1].axis;
    if !pads.windows(2).all(together) {
        return None;
    }
    let parts: Vec<ValueId> = pads.iter().map(|p| p.x).collect();
    let axis = Attr::Int(first.axis as i64);
    let both = b.op(Opcode::Concat, &parts, vec![axis.clone()]);
    if first.start == 0 && last.end == last.size {
        return Some(vec![both]);
    }
    Some(vec![b.op(Opcode::Pad, &[both], vec![axis, Attr::Int(first.start as i64), Attr::Int(last.size as i64)])])
}

/// The pads that a value is the sum of; `None` if there is another term.
fn collect(b: &Builder, value: ValueId, pads: &mut Vec<Pad>) -> Option<()> {
    let op = &b.func.ops[b.func.def_op(value)?];
    match op.opcode {
        Opcode::Pad if pads.len() < MOST => {
            let (x, axis, start) = (op.operands[0], op.size("axis"), op.size("start"));
            let end = start + b.func.ty(x).shape[axis];
            pads.push(Pad { x, axis, start, end, size: op.size("size") });
            Some(())
        }
        Opcode::Add => op.operands.iter().try_for_each(|&v| {
            let same = b.func.ty(v) == b.func.ty(value);
            if same { collect(b, v, pads) } else { None }
        }),
        _ => None,
    }
}
