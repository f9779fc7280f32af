//! Copies of operations that cost nothing, one for each user.
use super::rows::natural_rows;
use crate::uses::{User, Uses};
use rdc_ir::{Builder, Func, OpId, Opcode};

/// Gives every row operation a `one_hot` or `broadcast` of its own: made where it is used, it needs no memory.
pub fn own_spreads(func: &mut Func) {
    let uses = Uses::new(func);
    for (region, id) in func.walk() {
        let op = func.ops[id].clone();
        let [from, to] = [op.operands.first(), op.results.first()].map(|v| v.map_or(0, |&v| func.ty(v).elements()));
        if !matches!(op.opcode, Opcode::OneHot | Opcode::Broadcast) || from == to {
            continue;
        }
        let result = op.results[0];
        let mut users: Vec<OpId> = uses.of(result).iter().filter_map(|user| operation(*user)).collect();
        users.retain(|&user| natural_rows(func, user).is_some());
        users.sort();
        users.dedup();
        if uses.of(result).len() == 1 && users.iter().all(|&user| uses.region(user) == region) {
            continue;
        }
        for user in users {
            let own = Builder::before(func, uses.region(user), user).op(op.opcode, &op.operands, op.attrs.clone());
            for operand in &mut func.ops[user].operands {
                if *operand == result {
                    *operand = own;
                }
            }
        }
    }
}

fn operation(user: User) -> Option<OpId> {
    match user {
        User::Op(op) => Some(op),
        User::Yield(_) => None,
    }
}
