//! The choices of training that the command line, configurations, the passes and the runtime name alike.
use serde::{Deserialize, Serialize};

/// What is kept across the iterations with gradient (rematerialisation); the rest is computed again in the backward pass.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Remat {
    /// Everything that costs: results of products, norms and attention, and what these take; of a product that is only used
    /// in slices, the slices. Elementwise operations and moved elements are computed again where they are used, since they
    /// fuse with that use.
    None,
    /// Of a loop, the carried values at the start of each iteration; the body runs again. Outside loops, results of
    /// products and attention.
    Iteration,
    /// As `None`, without the values that cost less to compute again than to keep and, where memory is limited, without the
    /// cheapest for the bytes that they take, until the rest fits. Never keeps more than `Iteration`; keeps that if nothing
    /// else is small enough.
    #[default]
    Auto,
}

impl Remat {
    /// Its name on the command line, in configurations and in metadata.
    pub fn name(self) -> &'static str {
        match self {
            Remat::None => "none",
            Remat::Iteration => "iteration",
            Remat::Auto => "auto",
        }
    }
}

/// An optimiser that the compiler has; `optimizer` in `rdc-passes` gives the formulas.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OptimizerKind {
    /// Adam with decoupled weight decay, as in PyTorch.
    #[default]
    #[serde(rename = "adamw")]
    AdamW,
    /// Adam with clipped updates, an arc tangent in place of the division, and moments that begin with the first gradient.
    EllisAdam,
}

impl OptimizerKind {
    /// Its name on the command line, in configurations and in metadata.
    pub fn name(self) -> &'static str {
        match self {
            OptimizerKind::AdamW => "adamw",
            OptimizerKind::EllisAdam => "ellis-adam",
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn names_are_those_of_configurations() {
        for remat in [Remat::None, Remat::Iteration, Remat::Auto] {
            assert_eq!(serde_json::to_value(remat).unwrap(), remat.name());
        }
        for kind in [OptimizerKind::AdamW, OptimizerKind::EllisAdam] {
            assert_eq!(serde_json::to_value(kind).unwrap(), kind.name());
        }
    }
}
