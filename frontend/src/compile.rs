//! From text to [`Lowered`]: the stages in order.
use crate::diagnostic::{Diagnostic, MOST, Severity};
use crate::lower::Lower;
use crate::value::MAX_SIZE;
use crate::{parser, scope};
use rdc_ir::Module;
use rdc_ir::program::KvPolicy;

/// What a text is specialised for.
#[derive(Clone, Debug)]
pub struct Options {
    /// The object of a config.json; fields that the text names have precedence over the text's defaults.
    pub config: Option<serde_json::Value>,
    /// `--set NAME=VALUE`, which has precedence over config.json; the last one of a name counts.
    pub overrides: Vec<(String, String)>,
    /// Rows.
    pub batch: usize,
    /// Chunk lengths to specialise; 1 is `decode`, the first greater one `prefill`, further ones `prefill_LENGTH`.
    pub chunks: Vec<usize>,
    /// The longest sequence; the text's `context` if absent.
    pub context: Option<usize>,
    /// The largest number of steps; the text's if absent.
    pub max_steps: Option<usize>,
    /// The cache policy; the text's if absent.
    pub kv: Option<KvPolicy>,
    /// The read-outs to compile; all if absent.
    pub readouts: Option<Vec<String>>,
    /// Outputs only of the last position of a chunk.
    pub last_only: bool,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            config: None,
            overrides: Vec::new(),
            batch: 1,
            chunks: vec![64, 1],
            context: None,
            max_steps: None,
            kv: None,
            readouts: None,
            last_only: false,
        }
    }
}

/// A compiled text.
#[derive(Clone, Debug)]
pub struct Lowered {
    /// The IR: one function per read-out and chunk length.
    pub module: Module,
    /// The model's default number of steps, at most `max_steps`.
    pub default_steps: usize,
    /// The number of steps that caches and stacked results are planned for.
    pub max_steps: usize,
    /// The longest sequence; the longest chunk if the text states none.
    pub context: usize,
    /// The cache policy.
    pub kv: KvPolicy,
    /// Rows.
    pub batch: usize,
    /// Chunk lengths that have functions.
    pub chunks: Vec<usize>,
    /// The compiled read-outs.
    pub readouts: Vec<String>,
    /// The read-out whose functions have no suffix.
    pub default_readout: String,
    /// Every named size, count, constant, flag and string with its value, in the order of the text.
    pub sizes: Vec<(String, String)>,
    /// Checkpoint tensors that the text says to ignore.
    pub ignored: Vec<String>,
    /// Whether some attention sees the whole chunk: such a model has no `decode`.
    pub full_attention: bool,
    /// Warnings.
    pub warnings: Vec<Diagnostic>,
}

/// Compiles a text. `name` is what the text is called in messages.
///
/// # Errors
/// Everything that is wrong with the text, the settings or the options, in the order of the text.
pub fn compile(name: &str, source: &str, options: &Options) -> Result<Lowered, Vec<Diagnostic>> {
    check_options(name, source, options)?;
    let (model, mut errors) = parser::parse(source);
    if !errors.is_empty() {
        errors.sort_by_key(Diagnostic::primary);
        errors.truncate(MOST);
        return Err(errors);
    }
    let mut lower = Lower::new(&model, source, options);
    lower.sink.extend(scope::check(&model));
    if !lower.declare_model(&model.items) {
        return Err(lower.sink.finish());
    }
    let all = lower.check_readouts(model.name.span);
    let readouts = chosen(&mut lower, &all, options);
    let mut chunks: Vec<usize> = Vec::new();
    // Chunks of one token last: whether there is a decode is known once attention has been seen.
    let (decode, prefill): (Vec<usize>, Vec<usize>) = options.chunks.iter().partition(|&&c| c == 1);
    prefill.into_iter().chain(decode).for_each(|c| {
        if !chunks.contains(&c) {
            chunks.push(c);
        }
    });
    let plan = lower.plan(&all);
    let mut funcs = Vec::new();
    let mut compiled = Vec::new();
    if let Some(plan) = plan {
        let mut prefilled = false;
        for &chunk in &chunks {
            if lower.full_attention && !compiled.is_empty() {
                break;
            }
            let base = match (chunk, prefilled) {
                (1, _) => "decode".to_string(),
                (_, false) => "prefill".to_string(),
                (n, true) => format!("prefill_{n}"),
            };
            prefilled |= chunk > 1;
            for readout in &readouts {
                let suffix = if *readout == all[0] { String::new() } else { format!(".{readout}") };
                funcs.extend(lower.function(&format!("{base}{suffix}"), readout, chunk, plan));
            }
            compiled.push(chunk);
        }
    }
    lower.check_unused_layers(&model, chunks[0]);
    let has_errors = lower.sink.has_errors();
    let sink = std::mem::take(&mut lower.sink);
    let (Some(plan), false) = (plan, has_errors) else { return Err(sink.finish()) };
    let mut module = std::mem::take(&mut lower.module);
    module.funcs = funcs;
    if lower.full_attention {
        // There is no cache, so even one token is a whole sequence.
        module.funcs.iter_mut().for_each(|f| f.name = f.name.replacen("decode", "prefill", 1));
    }
    let wrong = match module.funcs.len() == compiled.len() * readouts.len() {
        true => rdc_ir::verify::verify_text(&module),
        false => Some("a function is missing".into()),
    };
    if let Some(message) = wrong {
        let error = Diagnostic::error("invalid-ir", format!("the text becomes IR that does not verify: {message}"));
        return Err(vec![error.help("this is a mistake of the compiler; please report it with the text")]);
    }
    let stated = lower.settings.iter().find(|s| s.name == "context").and_then(|s| s.value.number());
    let longest = compiled.iter().copied().max().unwrap_or(1);
    Ok(Lowered {
        module,
        default_steps: plan.default_steps,
        max_steps: plan.max_steps,
        context: stated.map(|n| n as usize).or(options.context).unwrap_or(longest),
        kv: plan.kv,
        batch: options.batch,
        chunks: compiled,
        readouts,
        default_readout: all[0].clone(),
        sizes: lower.settings.iter().map(|s| (s.name.clone(), s.value.show())).collect(),
        ignored: std::mem::take(&mut lower.ignored),
        full_attention: lower.full_attention,
        warnings: sink.finish(),
    })
}

fn check_options(name: &str, source: &str, options: &Options) -> Result<(), Vec<Diagnostic>> {
    let mut errors = Vec::new();
    let fits = |n: usize| n >= 1 && n as i64 <= MAX_SIZE;
    if source.len() > 1 << 24 {
        errors.push(Diagnostic::error("too-large", format!("{name} is larger than 16 MiB")));
    }
    if !fits(options.batch) {
        errors.push(Diagnostic::error("bad-size", format!("a batch of {} is not possible", options.batch)));
    }
    if options.chunks.is_empty() {
        errors.push(Diagnostic::error("bad-size", "no chunk length is given"));
    }
    for &chunk in options.chunks.iter().filter(|&&c| !fits(c)) {
        errors.push(Diagnostic::error("bad-size", format!("a chunk of {chunk} positions is not possible")));
    }
    if options.config.as_ref().is_some_and(|c| !c.is_object()) {
        errors.push(Diagnostic::error("bad-config", "config.json does not hold an object"));
    }
    debug_assert!(errors.iter().all(|e| e.severity == Severity::Error));
    if errors.is_empty() { Ok(()) } else { Err(errors) }
}

/// The read-outs to compile; unknown names are reported.
fn chosen(lower: &mut Lower, all: &[String], options: &Options) -> Vec<String> {
    let Some(wanted) = &options.readouts else { return all.to_vec() };
    let mut out: Vec<String> = Vec::new();
    for name in wanted {
        if !all.contains(name) {
            let error = Diagnostic::error("unknown-readout", format!("there is no read-out `{name}`"));
            lower.sink.push(match crate::names::nearest(name, all.iter().map(String::as_str)) {
                Some(near) => error.help(format!("did you mean `{near}`?")),
                None => error.help(format!("the text has {}", all.join(", "))),
            });
        } else if !out.contains(name) {
            out.push(name.clone());
        }
    }
    out
}
