//! Losses: what training makes small. A loss becomes a function of its own, which has labels and no caches.
use super::function::{Handed, LABELS, Plan};
use super::{Building, Lower};
use crate::ast::Loss;
use crate::diagnostic::{Diagnostic, Span};
use crate::names::nearest;
use crate::options::LossInfo;
use crate::value::{Tensor, Val, explain_shape};
use rdc_ir::{Builder, DType, Func, Opcode, ValueId};
use std::collections::HashSet;

/// The most losses of a text: each is lowered on every compilation.
const MOST_LOSSES: usize = 64;

impl<'a> Lower<'a> {
    pub(super) fn declare_loss(&mut self, loss: &'a Loss) {
        if let Some(before) = self.losses.iter().find(|l| l.name.text == loss.name.text) {
            let error = Diagnostic::error("duplicate-name", format!("loss `{}` is declared twice", loss.name.text));
            let error = error.at(loss.name.span, "again here").at(before.name.span, "first here");
            self.sink.push(error);
        } else if self.losses.len() == MOST_LOSSES {
            let message = format!("a text declares at most {MOST_LOSSES} losses");
            self.error("too-large", loss.name.span, message, "one too many");
        } else {
            self.losses.push(loss);
        }
    }
    /// Names of the losses, in the order of the text.
    pub fn loss_names(&self) -> Vec<String> {
        self.losses.iter().map(|l| l.name.text.clone()).collect()
    }
    /// Checks what can be said of the losses without evaluating them.
    pub fn check_losses(&mut self, readouts: &[String]) {
        for loss in self.losses.clone() {
            if let Some(readout) = loss.readout.as_ref().filter(|r| !readouts.contains(&r.text)) {
                let error = Diagnostic::error("unknown-readout", format!("there is no read-out `{}`", readout.text));
                let error = error.at(readout.span, "not declared");
                self.sink.push(match nearest(&readout.text, readouts.iter().map(String::as_str)) {
                    Some(near) => error.help(format!("did you mean `{near}`?")),
                    None => error.help(format!("the text has {}", readouts.join(", "))),
                });
            }
            if loss.section.results[0].text != "loss" {
                let error = Diagnostic::error("bad-loss", "the first result of a loss is called `loss`");
                let error = error.at(loss.section.results[0].span, "not `loss`");
                self.sink.push(error.help("`-> loss` hands on the number that training makes small"));
            }
        }
    }
    /// The read-out of a loss.
    fn readout_of(&self, loss: &'a Loss, readouts: &[String]) -> Option<String> {
        match &loss.readout {
            Some(name) => readouts.iter().find(|r| **r == name.text).cloned(),
            None => readouts.first().cloned(),
        }
    }
    /// Lowers a loss for sequences of a length, with what is known of it. If it is not `wanted`, it is for its mistakes
    /// only, and the weights that it alone uses are not declared.
    pub fn loss_function(
        &mut self,
        index: usize,
        readouts: &[String],
        length: usize,
        plan: Plan,
        wanted: bool,
    ) -> Option<(LossInfo, Func)> {
        let loss = self.losses[index];
        let readout = self.readout_of(loss, readouts)?;
        let name = loss.name.text.clone();
        let func = if index == 0 { "loss".to_string() } else { format!("loss.{name}") };
        let building = Building::new(Func::new(&func), length);
        let lowered = match wanted {
            true => self.lower_function(building, &readout, plan, Some(loss)),
            false => self.trial(|l| l.lower_function(building, &readout, plan, Some(loss))),
        }?;
        let outputs = loss.section.results.iter().map(|r| r.text.clone()).collect();
        let all_steps = needs_all_steps(&lowered.func);
        Some((LossInfo { name, readout, func, outputs, all_steps }, lowered.func))
    }
    /// Declares the weights of every read-out, in the order in which [`Lower::function`] would, so that a model is trained
    /// and saved whole, whatever its loss uses.
    pub fn declare_readouts(&mut self, readouts: &[String], length: usize, plan: Plan) {
        for readout in readouts {
            self.lower_function(Building::new(Func::new("check"), length), readout, plan, None);
        }
    }
    /// The end of a loss's function: its body, and its results as outputs.
    pub(super) fn lower_loss(&mut self, loss: &'a Loss, mut handed: Handed) -> Option<()> {
        let labels = self.building.as_ref()?.labels.clone()?;
        handed.insert(LABELS.into(), Val::Tensor(labels.clone()));
        self.enter(&loss.section, &handed);
        self.exec(&loss.section.body);
        let results = self.leave(&loss.section);
        for name in &loss.section.results {
            let Some(Val::Tensor(t)) = results.get(&name.text) else { return None };
            if name.text == "loss" {
                self.check_loss(t, name.span)?;
            }
            let stacked = self.is_stacked(t);
            Builder::new(&mut self.building.as_mut()?.func).output(name.text.as_str(), t.id, stacked);
        }
        let func = &self.building.as_ref()?.func;
        if !reached(func, &func.regions[func.body].yields[..1]).contains(&labels.id) {
            let message = format!("loss `{}` does not depend on the labels", loss.name.text);
            let error = Diagnostic::error("unused-labels", message).at(loss.name.span, "declared here");
            self.sink
                .push(error.help("`labels` is a parameter that every loss can take: `cross_entropy(logits, labels)`"));
            return None;
        }
        Some(())
    }
    fn check_loss(&mut self, t: &Tensor, span: Span) -> Option<()> {
        if self.dtype(t) == DType::F32 && t.dims.is_empty() {
            return Some(());
        }
        let message = format!("`loss` must be a number, f32[], not {}", self.show_tensor(t));
        let error = Diagnostic::error("bad-loss", message).at(span, explain_shape(&t.dims));
        self.sink.push(error.help("`sum(x)` and `mean(x)` without an axis are over all elements"));
        None
    }
}

/// Values that some values are computed from, themselves included. Of a loop, its initial values are followed and not
/// its body.
fn reached(func: &Func, from: &[ValueId]) -> HashSet<ValueId> {
    let mut seen = HashSet::new();
    let mut work = from.to_vec();
    while let Some(value) = work.pop() {
        if seen.insert(value)
            && let Some(op) = func.def_op(value)
        {
            work.extend(&func.ops[op].operands);
        }
    }
    seen
}

/// Whether the loss depends on what single iterations recorded, or on when the loop ends: then an iteration without
/// gradient would leave out a part of the derivative.
fn needs_all_steps(func: &Func) -> bool {
    let values = reached(func, &func.regions[func.body].yields[..1]);
    func.walk().iter().map(|&(_, id)| &func.ops[id]).filter(|op| op.opcode == Opcode::Loop).any(|op| {
        let stacked = &op.results[op.operands.len()..];
        let used = op.results.iter().any(|r| values.contains(r));
        used && op.flag("exit") || stacked.iter().any(|r| values.contains(r))
    })
}
