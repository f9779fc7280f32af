//! Contributions to a cotangent, and their sum.
//!
//! Slices of one value often split it without rest (the gate and the rest of an MLP, the two halves of an adapter's
//! weight). Their contributions are then joined, which moves each element once, where a sum of padded ones would move all of them
//! for each slice.
use super::reverse::Reverse;
use rdc_ir::{Attr, Opcode, Type, ValueId};

/// A range of an axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Range {
    /// The axis.
    pub axis: usize,
    /// First index.
    pub start: usize,
    /// The index behind the last.
    pub end: usize,
}

impl Range {
    /// The attributes of the `slice` that takes the range out.
    pub(super) fn attrs(self) -> Vec<Attr> {
        [self.axis, self.start, self.end].map(|n| Attr::Int(n as i64)).to_vec()
    }
    /// The type of the slice.
    pub(super) fn of(self, ty: &Type) -> Type {
        let mut shape = ty.shape.clone();
        shape[self.axis] = self.end - self.start;
        ty.with_shape(shape)
    }
}

/// A term of a cotangent.
#[derive(Clone, Copy, Debug)]
pub(super) enum Contribution {
    /// A tensor of the value's type.
    Whole(ValueId),
    /// The term is zero outside of a range.
    Part(Range, ValueId),
    /// Row i of `rows` belongs to row `ids[i]`; other rows are zero.
    Rows {
        /// Row numbers.
        ids: ValueId,
        /// Rows.
        rows: ValueId,
    },
}

/// The parts, with equal ranges added up, if there is nothing but parts of one axis that do not overlap; in order.
pub(super) fn parts(cx: &mut Reverse<'_, '_>, terms: &[Contribution]) -> Option<Vec<(Range, ValueId)>> {
    let mut parts: Vec<(Range, ValueId)> = Vec::new();
    for term in terms {
        let &Contribution::Part(range, value) = term else { return None };
        parts.push((range, value));
    }
    parts.sort_by_key(|(range, _)| *range);
    let apart = |w: &[(Range, ValueId)]| w[0].0 == w[1].0 || (w[0].0.axis == w[1].0.axis && w[0].0.end <= w[1].0.start);
    if parts.is_empty() || !parts.windows(2).all(apart) {
        return None;
    }
    let mut sums: Vec<(Range, ValueId)> = Vec::new();
    for (range, value) in parts {
        match sums.last_mut() {
            Some((last, sum)) if *last == range => *sum = cx.op(Opcode::Add, &[*sum, value], vec![]),
            _ => sums.push((range, value)),
        }
    }
    Some(sums)
}

/// The sum of the terms, a tensor of that type; `None` if there are none.
pub(super) fn sum(cx: &mut Reverse<'_, '_>, ty: &Type, terms: &[Contribution]) -> Option<ValueId> {
    let only_parts: Vec<_> = terms.iter().filter(|t| matches!(t, Contribution::Part(..))).copied().collect();
    let whole = terms.iter().filter_map(|t| if let Contribution::Whole(v) = t { Some(*v) } else { None });
    let mut total: Option<ValueId> = None;
    let mut add = |cx: &mut Reverse<'_, '_>, value: ValueId| {
        total = Some(total.map_or(value, |sum| cx.op(Opcode::Add, &[sum, value], vec![])));
    };
    whole.for_each(|value| add(cx, value));
    match parts(cx, &only_parts).filter(|p| covers(p, ty)) {
        Some(parts) => {
            let axis = Attr::Int(parts[0].0.axis as i64);
            let values: Vec<ValueId> = parts.iter().map(|(_, v)| *v).collect();
            let joined = if values.len() == 1 { values[0] } else { cx.op(Opcode::Concat, &values, vec![axis]) };
            add(cx, joined);
        }
        None => {
            for term in only_parts {
                if let Contribution::Part(range, value) = term {
                    let attrs = [range.axis, range.start, ty.shape[range.axis]].map(|n| Attr::Int(n as i64));
                    let padded = cx.op(Opcode::Pad, &[value], attrs.to_vec());
                    add(cx, padded);
                }
            }
        }
    }
    for term in terms {
        if let Contribution::Rows { ids, rows } = *term {
            let base = total.unwrap_or_else(|| cx.zeros(ty));
            total = Some(cx.op(Opcode::ScatterAdd, &[base, ids, rows], vec![]));
        }
    }
    total
}

/// Whether parts that do not overlap leave nothing out.
pub(super) fn covers(parts: &[(Range, ValueId)], ty: &Type) -> bool {
    let size: usize = parts.iter().map(|(range, _)| range.end - range.start).sum();
    size == ty.shape[parts[0].0.axis]
}
