//! From text to [`Lowered`]: the stages in order.
use crate::diagnostic::{Diagnostic, MOST, Severity};
use crate::lower::{FUNCTIONS, Lower};
use crate::options::{LossInfo, LossSelection, Lowered, Options};
use crate::value::MAX_SIZE;
use crate::{parser, scope};
use rdc_ir::positions::Positions;
use std::collections::BTreeMap;

/// The longest sequence of losses that are compiled, unless [`Options::train_seq`] says otherwise.
const TRAIN_SEQ: usize = 128;

/// The prefill chunk unless the options say otherwise.
const DEFAULT_CHUNK: usize = 64;

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
    lower.sink.extend(scope::check(&model, FUNCTIONS));
    if !lower.declare_model(&model.items) {
        return Err(lower.sink.finish());
    }
    let all = lower.check_readouts(model.name.span);
    let readouts = chosen(&mut lower, &all, options);
    lower.check_losses(&all);
    let losses = chosen_losses(&mut lower, options);
    let context = lower.settings.iter().find(|s| s.name == "context").and_then(|s| s.value.number());
    let context = context.map(|n| n as usize).or(options.context);
    let asked = match options.chunks.is_empty() && losses.is_empty() {
        true => &[DEFAULT_CHUNK.min(context.unwrap_or(usize::MAX).max(1)), 1],
        false => &options.chunks[..],
    };
    let mut chunks: Vec<usize> = Vec::new();
    // Chunks of one token last: whether there is a decode is known once a longer one has been seen.
    let (decode, prefill): (Vec<usize>, Vec<usize>) = asked.iter().partition(|&&c| c == 1);
    prefill.into_iter().chain(decode).for_each(|c| {
        if !chunks.contains(&c) {
            chunks.push(c);
        }
    });
    let plan = lower.plan(&all);
    // Losses that are not compiled are checked, in tensors no larger than those that are.
    let longest = chunks.iter().copied().max().unwrap_or(1);
    let length = if losses.is_empty() { longest.max(2) } else { TRAIN_SEQ };
    let train_seq = options.train_seq.unwrap_or(context.map_or(length, |n| n.min(length)));
    let mut funcs = Vec::new();
    let (mut compiled, mut wanted) = (Vec::new(), losses.len());
    let (mut positions, mut known) = (BTreeMap::new(), BTreeMap::new());
    let mut declared = Vec::new();
    if let Some(plan) = plan {
        if !losses.is_empty() {
            lower.declare_readouts(&all, train_seq, plan);
        }
        let mut prefilled = false;
        for &chunk in &chunks {
            let base = match (chunk, prefilled) {
                (1, _) => "decode".to_string(),
                (_, false) => "prefill".to_string(),
                (n, true) => format!("prefill_{n}"),
            };
            prefilled |= chunk > 1;
            for readout in &readouts {
                let known = known.entry(readout.as_str()).or_insert(None);
                if known.as_ref().is_some_and(|p: &Positions| p.whole.is_some()) {
                    continue;
                }
                let suffix = if *readout == all[0] { String::new() } else { format!(".{readout}") };
                let lowered = lower.function(&format!("{base}{suffix}"), (readout, chunk), plan, known.as_ref());
                wanted += 1;
                let Some((mut func, found)) = lowered else { continue };
                if found.whole.is_some() {
                    // Even one token is a whole sequence.
                    func.name = func.name.replacen("decode", "prefill", 1);
                }
                positions.insert(func.name.clone(), found.clone());
                known.get_or_insert(found);
                funcs.push(func);
                if compiled.last() != Some(&chunk) {
                    compiled.push(chunk);
                }
            }
        }
        for (i, name) in lower.loss_names().iter().enumerate() {
            let wanted = losses.contains(name);
            if let Some((info, func)) = lower.loss_function(i, &all, train_seq, plan, wanted) {
                declared.push(info);
                funcs.extend(wanted.then_some(func));
            }
        }
    }
    lower.check_unused_layers(&model, chunks.first().copied().unwrap_or(train_seq));
    let has_errors = lower.sink.has_errors();
    let sink = std::mem::take(&mut lower.sink);
    let (Some(plan), false) = (plan, has_errors) else { return Err(sink.finish()) };
    let mut module = std::mem::take(&mut lower.module);
    module.funcs = funcs;
    let wrong = match module.funcs.len() == wanted {
        true => rdc_ir::verify::verify_text(&module),
        false => Some("a function is missing".into()),
    };
    if let Some(message) = wrong {
        let error = Diagnostic::error("invalid-ir", format!("the text becomes IR that does not verify: {message}"));
        return Err(vec![error.help("this is a mistake of the compiler; please report it with the text")]);
    }
    Ok(Lowered {
        module,
        default_steps: plan.default_steps,
        max_steps: plan.max_steps,
        context: context.unwrap_or(0),
        kv: plan.kv,
        batch: options.batch,
        chunks: compiled,
        readouts,
        default_readout: all[0].clone(),
        config: lower.settings.iter().flat_map(|s| s.config()).collect(),
        sizes: lower.settings.iter().map(|s| (s.name.clone(), s.value.show())).collect(),
        ignored: std::mem::take(&mut lower.ignored),
        default_loss: declared.first().map(|l: &LossInfo| l.name.clone()),
        losses: declared,
        train_seq,
        positions,
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
    for &chunk in options.chunks.iter().filter(|&&c| !fits(c)) {
        errors.push(Diagnostic::error("bad-size", format!("a chunk of {chunk} positions is not possible")));
    }
    if let Some(n) = options.train_seq.filter(|&n| !fits(n)) {
        errors.push(Diagnostic::error("bad-size", format!("sequences of {n} positions are not possible")));
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

/// Names of the losses to compile; unknown ones are reported, and so is a text that declares none.
fn chosen_losses(lower: &mut Lower, options: &Options) -> Vec<String> {
    let all = lower.loss_names();
    if all.is_empty() && options.losses != LossSelection::None {
        let error = Diagnostic::error("no-loss", "the text declares no loss");
        lower.sink.push(error.help("for instance `loss next_token (logits, labels) -> loss { … }`"));
        return all;
    }
    let wanted = match &options.losses {
        LossSelection::None => return Vec::new(),
        LossSelection::All => return all,
        LossSelection::Only(names) => names,
    };
    for name in wanted.iter().filter(|n| !all.contains(n)) {
        let error = Diagnostic::error("unknown-loss", format!("there is no loss `{name}`"));
        lower.sink.push(match crate::names::nearest(name, all.iter().map(String::as_str)) {
            Some(near) => error.help(format!("did you mean `{near}`?")),
            None => error.help(format!("the text has {}", all.join(", "))),
        });
    }
    all.into_iter().filter(|n| wanted.contains(n)).collect()
}
