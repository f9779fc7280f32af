//! One specialised function: prelude, loop over the core, coda.
use super::attention::{CachePlan, cache_names};
use super::{Building, Frame, Lower};
use crate::ast::{Expr, Loss, Name, Section, SectionKind, SectionParam, Trips};
use crate::diagnostic::{Diagnostic, Severity, Span};
use crate::value::{Dim, Tensor, Val, show_shape};
use rdc_ir::positions::{Mixing, Positions, analyse};
use rdc_ir::program::KvPolicy;
use rdc_ir::{ArgRole, Attr, Builder, DType, Func, Loc, Opcode, ValueId};
use std::collections::HashMap;

/// The most steps a loop may be planned for.
const MAX_STEPS: i64 = 1 << 16;
/// The argument that holds labels, and its name in losses.
pub(super) const LABELS: &str = "labels";

/// The chunk that stands for all others if only one of one position is wanted: no size that models have.
const LONGER: usize = 7;

/// Positions whose number matters, if that is so.
fn counts(positions: Positions, counted: Option<Loc>) -> Positions {
    match counted.filter(|_| positions.whole.is_none()) {
        Some(loc) => {
            let what = "`S`, the number of positions of a call, as a number".into();
            Positions { whole: Some(Mixing { loc, what }), ..Positions::default() }
        }
        None => positions,
    }
}

/// What all functions of a model share.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    /// The default number of steps.
    pub default_steps: usize,
    /// The largest number of steps.
    pub max_steps: usize,
    /// The cache policy.
    pub kv: KvPolicy,
}

/// Values handed from one section to the next.
pub(super) type Handed = HashMap<String, Val>;

impl<'a> Lower<'a> {
    /// The section of a kind for a read-out: its own, else the one that names none.
    fn section(&self, kind: SectionKind, readout: &str) -> Option<&'a Section> {
        let of_kind = || self.sections.iter().copied().filter(move |s| s.kind == kind);
        let own = of_kind().find(|s| s.readouts.iter().any(|r| r.text == readout));
        own.or_else(|| of_kind().find(|s| s.readouts.is_empty()))
    }
    /// Checks the sections against the read-outs, and gives the names of the read-outs.
    pub fn check_readouts(&mut self, model: Span) -> Vec<String> {
        if self.readouts.is_empty() {
            self.readouts.push(("default".into(), model));
        }
        let names: Vec<String> = self.readouts.iter().map(|(n, _)| n.clone()).collect();
        for section in self.sections.clone() {
            for name in &section.readouts {
                if !names.contains(&name.text) {
                    let error = Diagnostic::error("unknown-readout", format!("there is no read-out `{}`", name.text));
                    let error = error.at(name.span, "not declared");
                    self.sink.push(match crate::names::nearest(&name.text, names.iter().map(String::as_str)) {
                        Some(near) => error.help(format!("did you mean `{near}`?")),
                        None => error.help(format!("declare it: `readout {}`", name.text)),
                    });
                }
            }
        }
        for kind in [SectionKind::Prelude, SectionKind::Core, SectionKind::Coda] {
            for (name, span) in self.readouts.clone() {
                let of_kind = self.sections.iter().filter(|s| s.kind == kind);
                let (any, own): (Vec<&Section>, Vec<&Section>) = of_kind.partition(|s| s.readouts.is_empty());
                let own: Vec<_> = own.into_iter().filter(|s| s.readouts.iter().any(|r| r.text == name)).collect();
                let twice = [&own, &any].into_iter().find(|v| v.len() > 1).map(|v| (v[0].head, v[1].head));
                if let Some((first, again)) = twice {
                    let message = format!("there are two `{}` sections for read-out `{name}`", kind.word());
                    let error = Diagnostic::error("duplicate-section", message).at(again, "again here");
                    self.sink.push(error.at(first, "first here"));
                } else if own.is_empty() && any.is_empty() {
                    let message = format!("read-out `{name}` has no `{}`", kind.word());
                    self.error("no-section", span, message, format!("needs a `{}` section", kind.word()));
                }
            }
        }
        names
    }
    /// The numbers of steps and the cache policy. All cores must agree on the loop.
    pub fn plan(&mut self, readouts: &[String]) -> Option<Plan> {
        let mut found: Option<(usize, usize, Span)> = None;
        for readout in readouts {
            let Some(section) = self.section(SectionKind::Core, readout) else { continue };
            let Some(trips) = &section.trips else { continue };
            let (default, max) = self.trips(trips)?;
            match found {
                Some((d, m, first)) if (d, m) != (default, max) => {
                    let message = format!("the cores disagree on the loop: {d} of at most {m}, {default} of {max}");
                    let error = Diagnostic::error("bad-loop", message).at(trips.default.span, "not the same");
                    self.sink.push(error.at(first, "as here"));
                }
                Some(_) => {}
                None => found = Some((default, max, trips.default.span)),
            }
        }
        let Some((default, max, span)) = found else {
            if let Some(core) = self.sections.iter().find(|s| s.kind == SectionKind::Core) {
                let error = Diagnostic::error("bad-loop", "no `core` says how often it runs");
                let error = error.at(core.head, "has no `loop`").help("add `loop default STEPS max STEPS` before `{`");
                self.sink.push(error);
            }
            return None;
        };
        let max_steps = match self.options.max_steps {
            Some(n) if n == 0 || n as i64 > MAX_STEPS => {
                let message = format!("the largest number of steps must be between 1 and {MAX_STEPS}, not {n}");
                self.error("bad-size", span, message, "of this loop");
                return None;
            }
            Some(n) => n,
            None => max,
        };
        let kv = self.options.kv.or(self.cache_policy).unwrap_or(KvPolicy::Full);
        if matches!(kv, KvPolicy::Modulo(0) | KvPolicy::Block(0)) {
            self.sink.push(Diagnostic::error("bad-size", "a cache policy's number must be at least 1"));
            return None;
        }
        Some(Plan { default_steps: default.min(max_steps), max_steps, kv })
    }
    fn trips(&mut self, trips: &'a Trips) -> Option<(usize, usize)> {
        let mut default = self.steps(&trips.default, 0)?;
        if let Some(most) = self.options.max_steps {
            default = default.min(most);
        }
        let max = match &trips.max {
            Some(max) => self.steps(max, 1)?,
            None => default.max(1),
        };
        if default > max {
            let message = format!("the default of {default} steps is more than the largest number, {max}");
            self.error("bad-loop", trips.default.span, message, format!("this is {default}"));
            return None;
        }
        Some((default, max))
    }
    fn steps(&mut self, expr: &'a Expr, least: i64) -> Option<usize> {
        match self.eval(expr) {
            Val::Int(n, _) if (least..=MAX_STEPS).contains(&n) => Some(n as usize),
            Val::Error => None,
            other => {
                let message =
                    format!("a number of steps must be a whole number up to {MAX_STEPS}, not {}", other.show());
                self.error("bad-size", expr.span, message, "here");
                None
            }
        }
    }
    /// Lowers one function: once to find mistakes and to count attentions, then once more with caches of the right size. Says too
    /// where the text takes S for a number.
    fn lowered(&mut self, name: &str, readout: &str, chunk: usize, plan: Plan) -> Option<(Func, Option<Loc>)> {
        let first = CachePlan { policy: Some(plan.kv), max_steps: plan.max_steps, ..CachePlan::default() };
        let mut building = Building::new(Func::new(name), chunk);
        building.caches = first;
        let counted = self.lower_function(building, readout, plan, None)?;
        if self.sink.has_errors() {
            return None;
        }
        let mut building = Building::new(Func::new(name), chunk);
        building.caches = counted.caches.plan();
        let built = self.lower_function(building, readout, plan, None)?;
        Some((built.func, built.counted))
    }
    /// Lowers one function, with what its results have to do with positions; `known` is that of another chunk length.
    pub fn function(
        &mut self,
        name: &str,
        (readout, chunk): (&str, usize),
        plan: Plan,
        known: Option<&Positions>,
    ) -> Option<(Func, Positions)> {
        let (func, counted) = self.lowered(name, readout, chunk, plan)?;
        let last_only = self.options.last_only;
        let positions = match known {
            // Axes of one position are all alike.
            Some(known) if chunk == 1 => known.clone(),
            None if chunk == 1 => self.longer(readout, plan),
            _ => analyse(&func, last_only),
        };
        Some((func, counts(positions, counted)))
    }
    /// What a longer chunk has to do with positions.
    fn longer(&mut self, readout: &str, plan: Plan) -> Positions {
        let context = match self.globals.get("context") {
            Some(Val::Int(n, _)) => usize::try_from(*n).ok(),
            _ => self.options.context,
        };
        let chunk = context.map_or(LONGER, |n| n.min(LONGER));
        let sink = std::mem::take(&mut self.sink);
        let lowered = self.trial(|l| l.lowered("longer", readout, chunk, plan));
        let mistakes = std::mem::replace(&mut self.sink, sink).finish();
        match (lowered, mistakes.into_iter().find(|d| d.severity == Severity::Error)) {
            (Some((func, counted)), None) => counts(analyse(&func, self.options.last_only), counted),
            (_, mistake) => {
                let loc = mistake.as_ref().and_then(Diagnostic::primary).map_or(Loc::default(), |span| self.loc(span));
                let what = mistake.map_or("it fits one position only".into(), |m| m.message);
                Positions { whole: Some(Mixing { loc, what }), ..Positions::default() }
            }
        }
    }
    /// Fills a function: with the outputs of the coda, or with a loss.
    pub(super) fn lower_function(
        &mut self,
        building: Building,
        readout: &str,
        plan: Plan,
        loss: Option<&'a Loss>,
    ) -> Option<Building> {
        self.building = Some(building);
        self.frames.clear();
        self.spent = 0;
        let done = self.sections_of(readout, plan, loss);
        self.frames.clear();
        let building = self.building.take()?;
        done.map(|()| building)
    }
    fn sections_of(&mut self, readout: &str, plan: Plan, loss: Option<&'a Loss>) -> Option<()> {
        let prelude = self.section(SectionKind::Prelude, readout)?;
        let core = self.section(SectionKind::Core, readout)?;
        let coda = self.section(SectionKind::Coda, readout)?;
        let mut handed = self.arguments(prelude, core, loss.is_some())?;
        self.enter(prelude, &handed);
        self.exec(&prelude.body);
        // States can be used wherever the prelude's results can.
        handed.retain(|name, _| self.states.iter().any(|s| s.name == name));
        handed.extend(self.leave(prelude));
        let after = self.lower_loop(core, plan, &handed)?;
        handed.extend(after);
        self.enter(coda, &handed);
        self.exec(&coda.body);
        // A loss sees what the coda sees and computes.
        handed.extend(self.frames.last().map(|f| f.vars.clone()).unwrap_or_default());
        let outputs = self.leave(coda);
        match loss {
            Some(loss) => self.lower_loss(loss, handed),
            None => self.outputs(coda, &outputs),
        }
    }
    /// Adds the function's arguments: ids, labels, positions, steps, states, caches, other inputs.
    fn arguments(&mut self, prelude: &'a Section, core: &'a Section, labelled: bool) -> Option<Handed> {
        let mut handed = Handed::new();
        let (batch, chunk) = (self.options.batch, self.building.as_ref()?.chunk);
        let ids = vec![Dim::named(batch, "B"), Dim::named(chunk, "S")];
        let input = self.argument("input_ids", ArgRole::Ids, DType::I32, ids.clone());
        if labelled {
            let labels = self.argument(LABELS, ArgRole::Labels, DType::I32, ids.clone());
            self.building.as_mut()?.labels = Some(labels);
        }
        self.building_pos()?;
        let steps = self.argument("steps", ArgRole::Steps, DType::I32, Vec::new());
        self.building.as_mut()?.steps = Some(steps.id);
        for i in 0..self.states.len() {
            let (name, ty, init, span) =
                (self.states[i].name, self.states[i].ty, self.states[i].init, self.states[i].span);
            if !self.free_name(name, span) {
                return None;
            }
            let (dtype, dims) = self.type_expr(ty)?;
            if dtype != DType::F32 {
                self.error("type-mismatch", span, "a state is f32", "of another type");
                return None;
            }
            let state = self.argument(name, ArgRole::State(init), dtype, dims);
            handed.insert(name.to_string(), Val::Tensor(state));
        }
        self.cache_arguments(core.head)?;
        for param in &prelude.params {
            if param.name.text == "input_ids" {
                if let Some(ty) = &param.ty {
                    let (dtype, dims) = self.type_expr(ty)?;
                    if !(dtype == DType::I32 && show_shape(&dims) == show_shape(&ids)) {
                        self.error("shape-mismatch", ty.span, "`input_ids` is i32[B, S]", "of another type");
                    }
                }
                handed.insert("input_ids".into(), Val::Tensor(input.clone()));
                continue;
            }
            if self.states.iter().any(|s| s.name == param.name.text) {
                continue;
            }
            if !self.free_name(&param.name.text, param.name.span) {
                return None;
            }
            let Some(ty) = &param.ty else {
                let message = format!("`{}` needs a type", param.name.text);
                let error = Diagnostic::error("no-type", message).at(param.name.span, "an input of the function");
                self.sink
                    .push(error.help("token ids are called `input_ids`; other inputs are written `x: [B, S, dim]`"));
                return None;
            };
            let (dtype, dims) = self.type_expr(ty)?;
            let value = self.argument(&param.name.text, ArgRole::Input, dtype, dims);
            handed.insert(param.name.text.clone(), Val::Tensor(value));
        }
        Some(handed)
    }
    /// Whether a name can be that of an argument or output; reports it if it means something else.
    fn free_name(&mut self, name: &str, span: Span) -> bool {
        let taken = matches!(name, "input_ids" | LABELS | "pos" | "steps") || name.starts_with("cache_");
        if taken {
            let of = if name == LABELS { "loss" } else { "function" };
            let message = format!("`{name}` is an argument of every {of}");
            self.error("reserved-name", span, message, "choose another name");
        }
        !taken
    }
    /// Starts a section: its parameters take what was handed on. Carried values are bound by the caller.
    pub(super) fn enter(&mut self, section: &'a Section, handed: &Handed) {
        if let Some(b) = &mut self.building {
            b.caches.section = Some(section.kind);
        }
        let mut frame = Frame::default();
        for param in section.params.iter().filter(|p| p.init.is_none()) {
            let val = match handed.get(&param.name.text) {
                Some(val) => val.clone(),
                None => {
                    let message = format!("`{}` is not handed to the {}", param.name.text, section.kind.word());
                    let error = Diagnostic::error("not-handed", message).at(param.name.span, "not known");
                    let error = match section.kind {
                        SectionKind::Core => error.help("a carried value has a start: `core (s = initial_state)`"),
                        _ => error,
                    };
                    let known = handed.keys().map(String::as_str);
                    self.sink.push(error.suggest(&param.name.text, known));
                    Val::Error
                }
            };
            self.check_param(param, &val);
            frame.vars.insert(param.name.text.clone(), val);
        }
        self.frames.push(frame);
    }
    fn check_param(&mut self, param: &'a SectionParam, val: &Val) {
        let (Val::Tensor(t), Some(ty)) = (val, &param.ty) else { return };
        if let Some((dtype, dims)) = self.type_expr(ty) {
            self.check_type(t, (dtype, &dims), &format!("`{}`", param.name.text), param.name.span, ty.span);
        }
    }
    /// Ends a section: the values of its results.
    pub(super) fn leave(&mut self, section: &'a Section) -> Handed {
        let mut handed = Handed::new();
        for name in &section.results {
            let val = match self.frames.last().and_then(|f| f.vars.get(&name.text)) {
                Some(val) => val.clone(),
                None => {
                    let message = format!("the {} does not compute `{}`", section.kind.word(), name.text);
                    let error = Diagnostic::error("not-computed", message).at(name.span, "promised here");
                    let visible = self.visible();
                    self.sink.push(error.suggest(&name.text, visible.iter().map(String::as_str)));
                    Val::Error
                }
            };
            handed.insert(name.text.clone(), self.result(val, name));
        }
        self.frames.pop();
        handed
    }
    /// A result as a tensor (a plain number becomes a constant).
    fn result(&mut self, val: Val, name: &Name) -> Val {
        match self.tensor(&val, DType::F32, name.span) {
            Some(t) => Val::Tensor(t),
            None => Val::Error,
        }
    }
    /// The loop over the core; gives carried values, collected values and `trips`.
    fn lower_loop(&mut self, core: &'a Section, plan: Plan, handed: &Handed) -> Option<Handed> {
        let carried: Vec<&SectionParam> = core.params.iter().filter(|p| p.init.is_some()).collect();
        let mut start = Vec::new();
        self.frames.push(Frame { vars: handed.clone(), ..Frame::default() });
        for param in &carried {
            start.push(self.start_value(param));
        }
        self.frames.pop();
        let start: Vec<Tensor> = start.into_iter().collect::<Option<_>>()?;
        let caches: Vec<ValueId> = self.cache_values();
        let init: Vec<ValueId> = start.iter().map(|t| t.id).chain(caches.iter().copied()).collect();

        let loc = self.loc(core.head);
        let b = self.building.as_mut()?;
        let steps = b.steps?;
        let (region, step, is_last, args) = Builder::new(&mut b.func).begin_loop(&init);
        b.region = region;
        b.step = Some(step);
        let (own, cache_args) = args.split_at(start.len());
        self.set_cache_values(cache_args);
        self.enter(core, handed);
        self.bind("step", Val::Tensor(Tensor { id: step, dims: Vec::new() }));
        self.bind("is_last", Val::Tensor(Tensor { id: is_last, dims: Vec::new() }));
        for ((param, first), &id) in carried.iter().zip(&start).zip(own) {
            self.bind(&param.name.text, Val::Tensor(Tensor { id, dims: first.dims.clone() }));
        }
        for (i, &id) in cache_args.iter().enumerate() {
            self.building.as_mut()?.func.values[id].name = Some(cache_names(i / 2)[i % 2].clone());
        }
        self.exec(&core.body);
        let results = self.leave(core);
        let mut next: Vec<ValueId> = self.next_values(core, &carried, &start, &results)?;
        next.extend(self.cache_values());

        let b = self.building.as_mut()?;
        let collected = std::mem::take(&mut b.collected);
        let exit = b.exit.take().map(|(id, _)| id);
        b.region = b.func.body;
        b.step = None;
        let stacked: Vec<ValueId> = collected.iter().map(|(_, t, _)| t.id).collect();
        let mut builder = Builder::new(&mut b.func);
        builder.loc = loc;
        let out = builder.end_loop(region, steps, &init, &next, exit, &stacked, plan.max_steps);
        self.set_cache_values(&out[start.len()..init.len()]);

        let mut after = Handed::new();
        for ((param, first), &id) in carried.iter().zip(&start).zip(&out) {
            self.name_value_of(id, &param.name.text);
            after.insert(param.name.text.clone(), Val::Tensor(Tensor { id, dims: first.dims.clone() }));
        }
        self.name_value_of(out[init.len()], "trips");
        after.insert("trips".into(), Val::Tensor(Tensor { id: out[init.len()], dims: Vec::new() }));
        for ((name, entry, span), &id) in collected.iter().zip(&out[init.len() + 1..]) {
            let mut dims = vec![Dim::named(plan.max_steps, "max_steps")];
            dims.extend(entry.dims.iter().cloned());
            let t = self.with_dims(id, dims);
            if t.dims.iter().try_fold(1usize, |n, d| n.checked_mul(d.n)).is_none_or(|n| n > crate::value::MAX_ELEMENTS)
            {
                self.error("too-large", *span, format!("{} steps of this are too large", plan.max_steps), "here");
                return None;
            }
            self.name_value_of(id, name);
            after.insert(name.clone(), Val::Tensor(t));
        }
        Some(after)
    }
    /// The value of a carried variable before the first iteration.
    fn start_value(&mut self, param: &'a SectionParam) -> Option<Tensor> {
        let init = param.init.as_ref()?;
        let val = self.eval(init);
        let Some(ty) = &param.ty else {
            if val.is_static() {
                let message = format!("`{}` needs a type", param.name.text);
                let error = Diagnostic::error("no-type", message).at(param.name.span, "starts as a plain number");
                self.sink.push(error.help(format!("for instance `{}: [B, S] = {}`", param.name.text, val.show())));
                return None;
            }
            return self.tensor(&val, DType::F32, init.span);
        };
        let (dtype, dims) = self.type_expr(ty)?;
        let t = self.tensor(&val, dtype, init.span)?;
        if val.is_static() && !dims.is_empty() {
            return match self.broadcast_to(init.span, &t, dims) {
                Val::Tensor(t) => Some(t),
                _ => None,
            };
        }
        self.check_type(&t, (dtype, &dims), &format!("`{}`", param.name.text), init.span, ty.span).then_some(t)
    }
    /// The carried values after one iteration, in order, checked against those before it.
    fn next_values(
        &mut self,
        core: &'a Section,
        carried: &[&'a SectionParam],
        start: &[Tensor],
        results: &Handed,
    ) -> Option<Vec<ValueId>> {
        for name in &core.results {
            if !carried.iter().any(|p| p.name.text == name.text) {
                let message = format!("`{}` is not a carried value of the core", name.text);
                let error = Diagnostic::error("not-carried", message).at(name.span, "handed on, but not carried");
                self.sink.push(error.help(format!(
                    "give it a start: `core ({} = …)`, or record it for each step: `collect {} = …`",
                    name.text, name.text
                )));
            }
        }
        let mut next = Vec::new();
        for (param, first) in carried.iter().zip(start) {
            let name = &param.name.text;
            let Some(at) = core.results.iter().find(|r| r.text == *name) else {
                let message = format!("the core carries `{name}`, but does not hand it on");
                let error = Diagnostic::error("not-carried", message).at(param.name.span, "carried here");
                self.sink.push(error.at(core.head, format!("add `{name}` after `->`")));
                continue;
            };
            if let Some(Val::Tensor(t)) = results.get(name) {
                let want = (self.dtype(first), first.dims.as_slice());
                let what = format!("the carried value `{name}`");
                if self.check_type(t, want, &what, at.span, param.name.span) {
                    next.push(t.id);
                }
            }
        }
        (next.len() == carried.len()).then_some(next)
    }
    fn name_value_of(&mut self, id: ValueId, name: &str) {
        if let Some(b) = &mut self.building {
            b.func.values[id].name = Some(name.to_string());
        }
    }
    /// `collect name = value`
    pub(super) fn exec_collect(&mut self, name: &'a Name, value: &'a Expr) {
        let val = self.eval(value);
        let Some(t) = self.tensor(&val, DType::F32, value.span) else {
            self.bind(&name.text, Val::Error);
            return;
        };
        let Some(b) = &mut self.building else { return };
        if b.collected.iter().any(|(n, ..)| *n == name.text) {
            let message = format!("`{}` is collected twice", name.text);
            self.error("duplicate-name", name.span, message, "again here");
            return;
        }
        b.collected.push((name.text.clone(), t.clone(), name.span));
        self.bind(&name.text, Val::Tensor(t));
    }
    /// `exit when cond`
    pub(super) fn exec_exit(&mut self, cond: &'a Expr) {
        let val = self.eval(cond);
        let Some(t) = self.tensor(&val, DType::Bool, cond.span) else { return };
        if self.dtype(&t) != DType::Bool || !t.dims.is_empty() {
            let message = format!("the loop ends on one truth value, not {}", self.show_tensor(&t));
            let error = Diagnostic::error("shape-mismatch", message).at(cond.span, self.show_tensor(&t));
            self.sink.push(error.help("`all(…)` says whether every element is true"));
            return;
        }
        let Some(b) = &mut self.building else { return };
        match b.exit {
            None => b.exit = Some((t.id, cond.span)),
            Some((_, first)) => {
                let error = Diagnostic::error("duplicate-exit", "the loop has two exits").at(cond.span, "again here");
                self.sink.push(error.at(first, "first here").help("join them with `and` or `or`"));
            }
        }
    }
    fn cache_values(&self) -> Vec<ValueId> {
        let groups = self.building.iter().flat_map(|b| &b.caches.groups);
        groups.flat_map(|g| g.values.into_iter().flatten()).collect()
    }
    fn set_cache_values(&mut self, values: &[ValueId]) {
        let groups = self.building.iter_mut().flat_map(|b| b.caches.groups.iter_mut());
        for (group, pair) in groups.zip(values.chunks_exact(2)) {
            group.values = Some([pair[0], pair[1]]);
        }
    }
    /// Adds the function's results: what the coda hands on, then the caches.
    fn outputs(&mut self, coda: &'a Section, outputs: &Handed) -> Option<()> {
        for name in &coda.results {
            let Some(Val::Tensor(t)) = outputs.get(&name.text) else { return None };
            if name.text.starts_with("cache_") && !self.free_name(&name.text, name.span) {
                return None;
            }
            let mut t = t.clone();
            let stacked = self.is_stacked(&t);
            if self.options.last_only {
                t = self.last_position(t, name.span)?;
            }
            let b = self.building.as_mut()?;
            Builder::new(&mut b.func).output(name.text.as_str(), t.id, stacked);
        }
        for (i, value) in self.cache_values().into_iter().enumerate() {
            let b = self.building.as_mut()?;
            Builder::new(&mut b.func).output(cache_names(i / 2)[i % 2].as_str(), value, false);
        }
        Some(())
    }
    /// Whether a value is what a loop stacked over its iterations.
    pub(super) fn is_stacked(&self, t: &Tensor) -> bool {
        let Some(b) = &self.building else { return false };
        let rdc_ir::ValueDef::Result(op, index) = b.func.values[t.id].def else { return false };
        let op = &b.func.ops[op];
        op.opcode == Opcode::Loop && index >= op.operands.len()
    }
    /// The last position of every axis called `S`.
    fn last_position(&mut self, t: Tensor, span: Span) -> Option<Tensor> {
        let Some(axis) = t.dims.iter().position(|d| d.text.as_deref() == Some("S")) else { return Some(t) };
        let n = t.dims[axis].n as i64;
        if n == 1 {
            return Some(t);
        }
        let mut dims = t.dims.clone();
        dims[axis] = Dim::number(1);
        match self.op(span, Opcode::Slice, &[&t], vec![Attr::Int(axis as i64), Attr::Int(n - 1), Attr::Int(n)], dims) {
            Val::Tensor(t) => Some(t),
            _ => None,
        }
    }
}
