//! LLVM module to optimised code.
//!
//! `unsafe` here: calls of the C API on instructions of a live module, which inkwell does not wrap.
use super::Failure;
use crate::Isa;
use inkwell::{
    OptimizationLevel,
    attributes::AttributeLoc,
    module::Module,
    passes::PassBuilderOptions,
    targets::{
        CodeModel, FileType, InitializationConfig, RelocMode, Target as LlvmTarget, TargetMachine, TargetTriple,
    },
    values::AsValueRef,
};
use std::sync::Once;

/// Kernels are emitted in vector form with their loops as they shall run, so nothing is left to vectorise or unroll. Loop
/// idioms are left out on purpose: they would make calls of `memset` and `memcpy`.
const PASSES: &str = "function(sroa,early-cse<memssa>,instcombine<no-verify-fixpoint>,simplifycfg,loop-mssa(licm),gvn,\
                      instcombine<no-verify-fixpoint>,simplifycfg)";

/// `a * b + c` may be fused; nothing else may be reordered, so results do not depend on what LLVM finds.
const FAST_MATH: u32 = llvm_sys::LLVMFastMathAllowContract;

/// A target machine.
pub struct Machine {
    machine: TargetMachine,
    tune: String,
}

impl Machine {
    /// The machine of an instruction set.
    pub fn new(isa: &Isa) -> Result<Machine, Failure> {
        static ONCE: Once = Once::new();
        ONCE.call_once(|| {
            LlvmTarget::initialize_x86(&InitializationConfig::default());
            LlvmTarget::initialize_aarch64(&InitializationConfig::default());
        });
        let triple = TargetTriple::create(&isa.triple);
        let fail = |message: String| ("creating the target machine", message);
        let llvm = LlvmTarget::from_triple(&triple).map_err(|e| fail(e.to_string()))?;
        // Features are listed in full: the base processor must not add any.
        let base = if isa.triple.starts_with("x86_64") { "x86-64" } else { "generic" };
        let level = OptimizationLevel::Aggressive;
        let machine = llvm
            .create_target_machine(&triple, base, &isa.features, level, RelocMode::PIC, CodeModel::Small)
            .ok_or_else(|| fail(format!("LLVM does not know {}", isa.triple)))?;
        Ok(Machine { machine, tune: isa.cpu.clone() })
    }

    /// Sets the target's attributes and fast-math flags, then runs the passes.
    pub fn optimise(&self, module: &Module) -> Result<(), Failure> {
        module.set_triple(&self.machine.get_triple());
        module.set_data_layout(&self.machine.get_target_data().get_data_layout());
        let context = module.get_context();
        let (cpu, features) = (self.machine.get_cpu(), self.machine.get_feature_string());
        let attributes = [
            ("target-cpu", cpu.to_string_lossy().into_owned()),
            ("tune-cpu", self.tune.clone()),
            ("target-features", features.to_string_lossy().into_owned()),
            ("no-builtins", String::new()),
        ];
        let nounwind = inkwell::attributes::Attribute::get_named_enum_kind_id("nounwind");
        for function in module.get_functions().filter(|f| f.count_basic_blocks() > 0) {
            for (key, value) in &attributes {
                function.add_attribute(AttributeLoc::Function, context.create_string_attribute(key, value));
            }
            function.add_attribute(AttributeLoc::Function, context.create_enum_attribute(nounwind, 0));
            for instruction in function.get_basic_blocks().into_iter().flat_map(|b| b.get_instructions()) {
                let raw = instruction.as_value_ref();
                // SAFETY: `raw` is an instruction of `module`; flags are set only where they are allowed.
                unsafe {
                    if llvm_sys::core::LLVMCanValueUseFastMathFlags(raw) != 0 {
                        llvm_sys::core::LLVMSetFastMathFlags(raw, FAST_MATH);
                    }
                }
            }
        }
        let fail = |message: String| ("optimisation", message);
        module.verify().map_err(|e| fail(e.to_string()))?;
        module.run_passes(PASSES, &self.machine, PassBuilderOptions::create()).map_err(|e| fail(e.to_string()))
    }

    /// A relocatable object.
    pub fn object(&self, module: &Module) -> Result<Vec<u8>, Failure> {
        self.write(module, FileType::Object)
    }

    /// Assembly text.
    pub fn assembly(&self, module: &Module) -> Result<Vec<u8>, Failure> {
        self.write(module, FileType::Assembly)
    }

    fn write(&self, module: &Module, kind: FileType) -> Result<Vec<u8>, Failure> {
        let buffer =
            self.machine.write_to_memory_buffer(module, kind).map_err(|e| ("code generation", e.to_string()))?;
        Ok(buffer.as_slice().to_vec())
    }
}
