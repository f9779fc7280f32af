//! The graph of row operations as this back end computes it: what lies in memory by rows, and what is computed into a buffer first.
use rdc_ir::program::Kernel;
use rdc_ir::program::rows::{Class, Node, NodeId, NodeKind, RowGraph};

/// The row operations of one kernel.
#[derive(Clone, Copy)]
pub struct Graph<'k> {
    /// Nodes; operands come before their users.
    pub nodes: &'k [Node],
    kernel: &'k Kernel,
}

/// Whether a value is computed straight into a buffer, apart from the sweep of its level.
pub fn is_buffered(kind: &NodeKind) -> bool {
    matches!(kind, NodeKind::Concat(_) | NodeKind::PackedGather { .. } | NodeKind::Rope { .. })
}

impl<'k> Graph<'k> {
    /// A graph of a kernel.
    pub fn new(kernel: &'k Kernel, graph: &'k RowGraph) -> Graph<'k> {
        Graph { nodes: &graph.nodes, kernel }
    }

    /// Bytes from one row of a node to the next in the memory of a pointer.
    pub fn pitch(&self, pointer: usize, node: &Node) -> usize {
        self.kernel.pitch(pointer, node.class.width().unwrap_or(1) * node.dtype.bytes())
    }

    /// Whether computing a chunk again costs no more than loading it from a buffer.
    pub fn is_cheap(&self, node: NodeId) -> bool {
        let n = &self.nodes[node];
        if !matches!(n.class, Class::Rows(_)) {
            return true;
        }
        match &n.kind {
            NodeKind::Arg(_) | NodeKind::Given(_) | NodeKind::Constant(_) => true,
            NodeKind::Gather { .. } | NodeKind::OneHot { .. } => true,
            kind if is_buffered(kind) => true,
            NodeKind::Alias(x) | NodeKind::Slice { x, .. } => self.is_cheap(*x),
            _ => false,
        }
    }

    /// Whether the rows of a node lie in memory from its level on: those of arguments, and what is computed into a buffer.
    pub fn is_resident(&self, node: NodeId) -> bool {
        let n = &self.nodes[node];
        match n.kind {
            _ if n.class.width().is_none() => false,
            NodeKind::Arg(_) | NodeKind::Given(_) | NodeKind::Gather { .. } => true,
            NodeKind::Alias(x) | NodeKind::Slice { x, .. } => self.is_resident(x),
            ref kind => is_buffered(kind),
        }
    }
}
