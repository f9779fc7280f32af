//! MLIR text to an LLVM module, in process.
//!
//! `unsafe` here: the module that `mlirTranslateModuleToLLVMIR` returns is owned by the caller and lives in the LLVM
//! context handed in, which is what [`inkwell::module::Module::new`] asks for.
use super::Failure;
use inkwell::context::AsContextRef;
use melior::{
    Context,
    dialect::DialectRegistry,
    ir::Module,
    pass::PassManager,
    utility::{parse_pass_pipeline, register_all_dialects, register_all_llvm_translations, register_all_passes},
};
use std::{cell::RefCell, rc::Rc};

/// The text uses `llvm` for memory, so only control flow, arithmetic and vectors remain to be lowered.
const PIPELINE: &str =
    "builtin.module(convert-scf-to-cf,convert-vector-to-llvm,convert-to-llvm,reconcile-unrealized-casts)";

/// An MLIR context, which loads dialects as texts name them, and the diagnostics of the current module.
struct Session {
    context: Context,
    messages: Rc<RefCell<Vec<String>>>,
}

thread_local! {
    /// Making a context costs more than a small kernel, and it serves one thread at a time: one per thread.
    static SESSION: Session = Session::new();
}

impl Session {
    fn new() -> Session {
        register_all_passes();
        let registry = DialectRegistry::new();
        register_all_dialects(&registry);
        let context = Context::new_with_registry(&registry, false);
        register_all_llvm_translations(&context);
        let messages = Rc::new(RefCell::new(Vec::new()));
        let sink = messages.clone();
        context.attach_diagnostic_handler(move |diagnostic| {
            sink.borrow_mut().push(format!("{}: {diagnostic}", diagnostic.location()));
            true
        });
        Session { context, messages }
    }

    fn failure(&self, stage: &'static str) -> Failure {
        (stage, self.messages.take().join("; "))
    }

    fn translate<'c>(
        &self,
        text: &str,
        llvm: &'c inkwell::context::Context,
    ) -> Result<inkwell::module::Module<'c>, Failure> {
        self.messages.borrow_mut().clear();
        let mut module = Module::parse(&self.context, text).ok_or_else(|| self.failure("parsing MLIR"))?;
        let passes = PassManager::new(&self.context);
        parse_pass_pipeline(passes.as_operation_pass_manager(), PIPELINE)
            .map_err(|e| ("building the MLIR pipeline", e.to_string()))?;
        passes.run(&mut module).map_err(|_| self.failure("lowering MLIR"))?;
        let operation = module.as_operation().to_raw();
        // SAFETY: see the head of the file; both handles are alive.
        unsafe {
            let raw = mlir_sys::mlirTranslateModuleToLLVMIR(operation, llvm.as_ctx_ref().cast());
            if raw.is_null() {
                return Err(self.failure("translation to LLVM"));
            }
            Ok(inkwell::module::Module::new(raw.cast()))
        }
    }
}

/// Parses, verifies, lowers and translates one module.
pub fn translate<'c>(text: &str, llvm: &'c inkwell::context::Context) -> Result<inkwell::module::Module<'c>, Failure> {
    SESSION.with(|session| session.translate(text, llvm))
}
