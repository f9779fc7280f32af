//! Options for a small machine.
use rdc_ir::program::Target;
use rdc_passes::{OperandType, Options, WeightType};

/// Loops are expected to run 8 times, panels are 4 wide.
pub fn options(dtype: WeightType) -> Options {
    let target = Target {
        name: "test".into(),
        triple: String::new(),
        cpu: String::new(),
        features: String::new(),
        requires: vec![],
        lanes: 2,
        mr: 2,
        nr: 4,
        l1: 32 << 10,
        l2: 256 << 10,
    };
    Options { target, dtype, operands: OperandType::F32, expected_trips: 8, training: None }
}
