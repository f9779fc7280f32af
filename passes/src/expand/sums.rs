//! `sum_to` as sums over the last axis (row sums) and over the leading axes (column sums), for which there are kernels.
use rdc_ir::{Attr, Builder, OpId, Opcode, ValueId};

/// Sizes of the leading axes summed over, of those kept, and of the trailing ones summed over, if the axes that are kept lie
/// side by side. Axes of size 1 belong anywhere.
fn blocks(from: &[usize], to: &[usize]) -> Option<[usize; 3]> {
    let lead = from.len() - to.len();
    let kept: Vec<bool> = (0..from.len()).map(|i| i >= lead && to[i - lead] == from[i] && from[i] != 1).collect();
    let (Some(first), Some(last)) = (kept.iter().position(|&k| k), kept.iter().rposition(|&k| k)) else {
        let (last, lead) = from.split_last()?;
        return Some([lead.iter().product(), 1, *last]);
    };
    let size = |range: std::ops::Range<usize>| from[range].iter().product::<usize>();
    let together = (first..=last).all(|i| kept[i] || from[i] == 1);
    together.then(|| [size(0..first), size(first..last + 1), size(last + 1..from.len())])
}

/// The sum of a value to a shape; `None` if there is no such form.
fn sum(b: &mut Builder, value: ValueId, to: &[usize]) -> Option<ValueId> {
    let from = b.func.ty(value).shape.clone();
    if from == to {
        return Some(value);
    }
    let [lead, kept, trail] = blocks(&from, to)?;
    let mut value = value;
    if trail > 1 {
        value = b.reshape(value, &[lead * kept, trail]);
        value = b.op(Opcode::ReduceSum, &[value], vec![Attr::Int(1), Attr::Bool(true)]);
    }
    if lead > 1 {
        value = b.reshape(value, &[lead, kept]);
        value = b.op(Opcode::SumTo, &[value], vec![Attr::shape(&[kept])]);
    }
    Some(b.reshape(value, to))
}

/// The result of a `sum_to`.
pub fn sum_to(b: &mut Builder, op: OpId) -> Option<Vec<ValueId>> {
    let (x, result) = (b.func.ops[op].operands[0], b.func.ops[op].results[0]);
    let to = b.func.ty(result).shape.clone();
    let is_column_sum = b.func.ty(x).rank() == 2 && to == [b.func.ty(x).last()] && b.func.ty(x).rows() > 1;
    if is_column_sum { None } else { sum(b, x, &to).map(|v| vec![v]) }
}

/// The result of a `reduce_sum` over another axis than the last.
pub fn reduce_sum(b: &mut Builder, op: OpId) -> Option<Vec<ValueId>> {
    let data = b.func.ops[op].clone();
    let (x, axis) = (data.operands[0], data.size("axis"));
    let mut to = b.func.ty(x).shape.clone();
    if axis + 1 == to.len() {
        return None;
    }
    to[axis] = 1;
    let shape = b.func.ty(data.results[0]).shape.clone();
    let sums = sum(b, x, &to)?;
    Some(vec![b.reshape(sums, &shape)])
}

#[cfg(test)]
mod tests {
    use super::blocks;

    #[test]
    fn axes_fall_into_three_blocks() {
        assert_eq!(blocks(&[2, 3, 4], &[4]), Some([6, 4, 1]));
        assert_eq!(blocks(&[2, 3, 4], &[2, 3, 1]), Some([1, 6, 4]));
        assert_eq!(blocks(&[2, 3, 4], &[1, 3, 1]), Some([2, 3, 4]));
        assert_eq!(blocks(&[2, 3, 4], &[]), Some([6, 1, 4]));
        assert_eq!(blocks(&[2, 3, 4], &[3, 4]), Some([2, 12, 1]));
        assert_eq!(blocks(&[2, 1, 4], &[2, 1, 4]), Some([1, 8, 1]));
        assert_eq!(blocks(&[2, 3, 4], &[2, 1, 4]), None);
        assert_eq!(blocks(&[], &[]), None);
    }
}
