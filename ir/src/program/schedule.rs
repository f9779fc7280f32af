//! What the threads of an entry do, step by step.
#[cfg(doc)]
use super::{Kernel, Place};
use crate::module::Loc;
use serde::{Deserialize, Serialize};

/// One step of a schedule. All threads execute all steps.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Step {
    /// Run a kernel.
    Launch(Launch),
    /// Copy a buffer, each thread a share.
    Copy {
        /// Destination buffer.
        dst: usize,
        /// Source buffer.
        src: usize,
    },
    /// Set the bytes of a buffer to zero, each thread a share.
    Zero {
        /// The buffer.
        buffer: usize,
        /// If set, only those of a stack's entries that no iteration has written.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        beyond: Option<Beyond>,
    },
    /// All threads meet: what any of them did before is done, and seen by all. Threads meet nowhere else.
    Barrier,
    /// Run the body `min(steps, max_steps, first done)` times.
    Loop(LoopStep),
}

/// The entries of a stack from the trips of its loop on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Beyond {
    /// Buffer of [`Place::Trips`] of the loop.
    pub trips: usize,
    /// Bytes of an entry.
    pub stride: usize,
}

/// A kernel launch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Launch {
    /// Index of the kernel.
    pub kernel: usize,
    /// One per pointer of the calling convention.
    pub args: Vec<LaunchArg>,
    /// Whether its tasks wait for those tasks of the launches since the last barrier that touch the same memory
    /// ([`Kernel::reaches`]), one of them writing.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub waits: bool,
    /// The lines of model text it comes from, for people.
    pub locs: Vec<Loc>,
}

/// A pointer argument of a launch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LaunchArg {
    /// Buffer.
    pub buffer: usize,
    /// Bytes added to its address.
    pub offset: Offset,
}

/// A byte offset that may depend on the step of the loop around.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Offset {
    /// A constant.
    Fixed(usize),
    /// `step * stride`: an entry of a stacked result, being written, or an entry of any buffer, read by `index`.
    Step {
        /// Bytes per step.
        stride: usize,
    },
    /// A slot of a KV cache, as the op `kv_slot` computes it.
    Slot {
        /// Policy.
        policy: KvPolicy,
        /// Layer call within the step.
        layer: usize,
        /// Layer calls per step.
        layers: usize,
        /// First slot of the loop.
        base: usize,
        /// Bytes per slot.
        stride: usize,
    },
}

/// Which KV slot a layer call of an iteration uses; c counts layer calls from the start of the loop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum KvPolicy {
    /// One slot per call.
    Full,
    /// `c mod (k * layers)`: the last k iterations.
    Modulo(usize),
    /// `c / m`: m consecutive calls share one.
    Block(usize),
    /// Own slots for 8 iterations, then one more iteration's worth, shared.
    Anchor,
}

impl KvPolicy {
    /// The slot, counted from the loop's first, of a layer call. Numbers too large saturate, and a zero counts as one.
    pub fn slot(self, step: usize, layer: usize, layers: usize) -> usize {
        let call = step.saturating_mul(layers).saturating_add(layer);
        let own = layers.saturating_mul(8);
        match self {
            KvPolicy::Full => call,
            KvPolicy::Modulo(k) => call % k.saturating_mul(layers).max(1),
            KvPolicy::Block(m) => call / m.max(1),
            KvPolicy::Anchor if call < own => call,
            KvPolicy::Anchor => own.saturating_add((call - own) % layers.max(1)),
        }
    }
    /// Slots needed for `max_steps` iterations of `layers` calls; saturates as [`KvPolicy::slot`].
    pub fn slots(self, max_steps: usize, layers: usize) -> usize {
        let calls = max_steps.saturating_mul(layers);
        match self {
            KvPolicy::Full => calls,
            KvPolicy::Modulo(k) => calls.min(k.saturating_mul(layers)),
            KvPolicy::Block(m) => calls.div_ceil(m.max(1)),
            KvPolicy::Anchor => calls.min(layers.saturating_mul(9)),
        }
    }
}

/// A loop of a schedule. A result that its launches address by [`Offset::Step`] is a stacked result, whose entries beyond the trips no
/// iteration writes. A carried value that one kernel reads element by element as it writes the next (a sum) has one buffer; others
/// have two, of which the trips so far say which is the value and which the next ([`Place::Pair`]).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LoopStep {
    /// The `i32[]` buffer that holds r: an input, a constant's, or the trips of an earlier loop.
    pub steps: usize,
    /// R_max.
    pub max_steps: usize,
    /// Whether the step index runs from r - 1 down to 0.
    pub reverse: bool,
    /// What is between iterations.
    pub advance: Advance,
    /// The iteration.
    pub body: Vec<Step>,
    /// Carried tensors in the order of the text, for `--states`: buffers as they stand after the advance.
    pub carried: Vec<usize>,
}

/// How a loop goes on. When it begins, the trips become 0; after each iteration they grow by one. Either way, the loop ends if they are
/// `min(steps, max_steps)` or the iteration has decided so, and else the step (the trips, or in reverse `steps - 1 - trips`) and
/// whether it is the last are set for the next one.
///
/// Each thread may keep these cells for itself and do this alone, or one does it for all between two barriers: the body's steps order
/// what they touch against the reading of `done` and `steps` at the end of an iteration and the beginning of the loop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Advance {
    /// Buffer of [`Place::Step`].
    pub step: usize,
    /// Buffer of [`Place::IsLast`].
    pub is_last: usize,
    /// Buffer of [`Place::Trips`].
    pub trips: usize,
    /// How an iteration may decide that it is the last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit: Option<Exit>,
}

/// An iteration is the last if both are true.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// A `bool[]` buffer that the iteration writes.
    pub done: usize,
    /// Buffer of [`Place::MayExit`].
    pub allowed: usize,
}
