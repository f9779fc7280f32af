//! Options for a small machine.
use rdc_passes::tile::Cpu;
use rdc_passes::{Options, WeightType};
use std::sync::Arc;

/// Loops are expected to run 8 times, panels are 4 wide.
pub fn options(dtype: WeightType) -> Options {
    let machine = Arc::new(Cpu { lanes: 2, mr: 2, nr: 4, l1: 32 << 10, l2: 256 << 10 });
    Options { target: "test".into(), machine, dtype, expected_trips: 8, training: None }
}
