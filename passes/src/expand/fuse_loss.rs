//! The loss of a linear head as one operation, so that its derivative need not keep the logits.
use crate::rewrite::rewrite;
use crate::uses::Uses;
use rdc_ir::{Attr, Builder, Module, OpId, Opcode, ValueId};

/// Rewrites `cross_entropy(matmul(x, w, trans_b) [+ bias], labels)` to `linear_cross_entropy` in every function, where nothing
/// else uses the logits. Reshapes may stand between.
pub fn fuse_loss(module: &mut Module) {
    for func in &mut module.funcs {
        let uses = Uses::new(func);
        rewrite(func, |b, op| if b.func.ops[op].opcode == Opcode::CrossEntropy { fuse(b, &uses, op) } else { None });
    }
}

fn fuse(b: &mut Builder, uses: &Uses, loss: OpId) -> Option<Vec<ValueId>> {
    let data = b.func.ops[loss].clone();
    let classes = b.func.ty(data.operands[0]).last();
    let (mut value, mut bias) = (data.operands[0], None);
    let (x, w) = loop {
        let op = &b.func.ops[b.func.def_op(value)?];
        if uses.of(value).len() != 1 || b.func.ty(value).last() != classes {
            return None;
        }
        match op.opcode {
            Opcode::Reshape => value = op.operands[0],
            Opcode::Add if bias.is_none() => {
                let is_bias = |v: &ValueId| b.func.ty(*v).shape == [classes];
                let &row = op.operands.iter().find(|v| is_bias(v))?;
                value = *op.operands.iter().find(|v| !is_bias(v))?;
                bias = Some(row);
            }
            Opcode::Matmul if !op.flag("trans_a") && op.flag("trans_b") && b.func.ty(op.operands[1]).rank() == 2 => {
                break (op.operands[0], op.operands[1]);
            }
            _ => return None,
        }
    };
    let mut shape = b.func.ty(data.operands[1]).shape.clone();
    shape.push(b.func.ty(x).last());
    let x = b.reshape(x, &shape);
    let operands: Vec<ValueId> = [x, w, data.operands[1]].into_iter().chain(bias).collect();
    b.try_op(Opcode::LinearCrossEntropy, &operands, vec![Attr::float(data.float("z_loss"))]).ok()
}
