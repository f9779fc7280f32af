//! Matmuls of more than 4 rows.
use crate::emit::Error;
use rdc_ir::program::{Kernel, Target};

pub fn emit(_target: &Target, kernel: &Kernel) -> Result<String, Error> {
    Err(Error::unsupported(&kernel.name, "matmul"))
}

pub fn scratch(_kernel: &Kernel, _target: &Target) -> usize {
    0
}
