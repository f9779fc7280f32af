//! A 512 x 512 x 512 matmul with a packed weight, through the same passes and kernels as a model.
use super::measure::Need;
use anyhow::{Context, Result};
use rdc_ir::{ArgRole, Attr, Builder, DType, Func, Init, Module, Opcode, Param, Type};
use rdc_runtime::artifact::{Meta, ParamInfo};
use rdc_runtime::code::Code;
use rdc_runtime::exec::{AfterExit, Executor};
use rdc_runtime::memory::Buffer;
use rdc_runtime::model::Model;
use rdc_runtime::weights::DrawnSource;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Rows, columns and inner size.
const N: usize = 512;

/// The matmul, ready to run.
pub struct Gemm {
    executor: Executor,
    inputs: Vec<Buffer>,
    outputs: Vec<Buffer>,
}

/// What it needs at least.
pub fn need() -> Need {
    Need { flops: 2.0 * (N * N * N) as f64, reads: Vec::new() }
}

/// Compiles it for this machine.
pub fn model() -> Result<Arc<Model>> {
    let ty = Type::f32([N, N]);
    let mut module = Module { name: "gemm".into(), ..Module::default() };
    module.params.push(Param {
        name: "w".into(),
        aliases: Vec::new(),
        ty: ty.clone(),
        init: Init::Normal { std: 1.0 },
        decay: false,
        in_stack: false,
        state: false,
        loc: Default::default(),
    });
    let mut func = Func::new("prefill");
    let mut build = Builder::new(&mut func);
    let x = build.arg("x", ArgRole::Input, ty.clone());
    let w = build.param("w", ty);
    let product = build.op(Opcode::Matmul, &[x, w], vec![Attr::Bool(false), Attr::Bool(true)]);
    build.output("y", product, false);
    module.funcs.push(func);
    let params: Vec<ParamInfo> = module.params.values().map(ParamInfo::from).collect();
    let target = rdc_backend_cpu::target("native")?;
    let options = rdc_passes::Options {
        target: target.name.clone(),
        machine: std::sync::Arc::new(target.machine),
        dtype: rdc_passes::WeightType::F32,
        operands: rdc_passes::OperandType::F32,
        expected_trips: 1,
        training: None,
    };
    let (_, mut program) = rdc_passes::compile(module, &options, &mut |_, _| ()).context("the matmul benchmark")?;
    let image = rdc_backend_cpu::compile(&mut program, &target, &rdc_backend_cpu::Options::default())?;
    let symbols: BTreeMap<String, u64> = image.symbols.iter().map(|s| (s.name.clone(), s.offset as u64)).collect();
    let meta = Meta {
        compiler: env!("CARGO_PKG_VERSION").into(),
        sizes: BTreeMap::new(),
        default_steps: 0,
        max_steps: 0,
        context: 0,
        batch: 1,
        chunks: Vec::new(),
        readouts: Vec::new(),
        positions: BTreeMap::new(),
        shapes: BTreeMap::new(),
        dtype: DType::F32.name().into(),
        kv: rdc_ir::program::KvPolicy::Full,
        params,
        train: None,
        options: BTreeMap::new(),
        report: Default::default(),
        symbols: symbols.clone(),
        isa: crate::pipeline::build::isa(&target),
        program,
    };
    let drawn = DrawnSource::new(&meta.params.clone(), 0);
    Ok(Arc::new(Model::from_parts(meta, Code::from_image(&image.bytes, symbols)?, &drawn)?))
}

impl Gemm {
    /// With this many threads.
    pub fn new(model: &Arc<Model>, threads: usize) -> Result<Gemm> {
        let bytes = N * N * 4;
        // Pages that were never written are all one page, and a cache that predicts ways by virtual address stumbles over it.
        let x: Vec<u8> = (0..N * N).flat_map(|i| ((i % 61) as f32 / 61.0).to_le_bytes()).collect();
        Ok(Gemm {
            executor: Executor::new(model.clone(), threads)?,
            inputs: vec![Buffer::copy_of(&x)?],
            outputs: vec![Buffer::zeroed(bytes)?],
        })
    }
    /// Runs it once.
    pub fn run(&mut self) -> Result<()> {
        let mut inputs: Vec<&mut Buffer> = self.inputs.iter_mut().collect();
        self.executor.run(0, &mut inputs, &mut self.outputs, None, AfterExit::Leave)?;
        Ok(())
    }
}
