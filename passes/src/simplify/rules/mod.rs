//! The rewrite rules.
//!
//! Laws: a rule is an equation of real arithmetic, written above it; it has a direction, the side that is never worse, or
//! the side on which other rules can go on, and the cost decides; there is no general commutativity or associativity, so
//! saturation ends. A rule's right side mentions only operands of its left side, and no less of them than it needs, so that
//! a cheapest term never uses a value that the written term did not.
//!
//! To add a rule: write it in the file of its family, list it there, and add a case to `passes/tests/simplify/`.
mod arith;
mod matmul;
mod shape;
mod slice;

use super::graph::{Graph, Node};
use egg::Id;
use rdc_ir::Opcode;

/// A rule: tried on every node whose opcode `roots` admits; returns classes equal to the node's.
pub struct Rule {
    /// A name for people.
    pub name: &'static str,
    /// Opcodes of the left side's root.
    pub roots: fn(Opcode) -> bool,
    /// The right sides.
    pub apply: fn(&mut Graph, Opcode, &Node) -> Vec<Id>,
}

/// Every rule.
pub fn all() -> impl Iterator<Item = &'static Rule> {
    [arith::RULES, shape::RULES, slice::RULES, matmul::RULES].into_iter().flatten()
}
