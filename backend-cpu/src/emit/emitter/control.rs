//! Loops and branches.
use super::{Emitter, Ty, Val};
use std::fmt::Write;

impl Emitter {
    /// `for i in (lo..hi).step_by(step)` with carried values; the body gets the counter and them, and returns their
    /// successors. Returns the final ones.
    pub fn for_range(
        &mut self,
        lo: Val,
        hi: Val,
        step: usize,
        init: &[Val],
        body: impl FnOnce(&mut Emitter, Val, &[Val]) -> Vec<Val>,
    ) -> Vec<Val> {
        let step = self.i64(step);
        let counter = self.fresh(Ty::I64);
        let carried: Vec<Val> = init.iter().map(|v| self.fresh(v.ty)).collect();
        let results: Vec<Val> = init.iter().map(|v| self.fresh(v.ty)).collect();
        let mut text = String::new();
        if !init.is_empty() {
            text = format!("{} = ", Self::names(&results));
        }
        let (c, l, h, s) = (counter.name(), lo.name(), hi.name(), step.name());
        let _ = write!(text, "scf.for {c} = {l} to {h} step {s} ");
        if !init.is_empty() {
            let pairs: Vec<String> =
                carried.iter().zip(init).map(|(c, i)| format!("{} = {}", c.name(), i.name())).collect();
            let _ = write!(text, "iter_args({}) -> ({}) ", pairs.join(", "), Self::types(init));
        }
        self.line(format_args!("{text}: i64 {{"));
        self.depth += 1;
        let next = body(self, counter, &carried);
        self.close(&next);
        results
    }
    /// `for i in 0..n` with nothing carried.
    pub fn repeat(&mut self, n: usize, body: impl FnOnce(&mut Emitter, Val)) {
        let (lo, hi) = (self.i64(0), self.i64(n));
        self.each(lo, hi, body);
    }
    /// `for i in lo..hi` with nothing carried.
    pub fn each(&mut self, lo: Val, hi: Val, body: impl FnOnce(&mut Emitter, Val)) {
        self.for_range(lo, hi, 1, &[], |e, i, _| {
            body(e, i);
            vec![]
        });
    }
    /// Runs the body for every task of the call.
    pub fn tasks(&mut self, body: impl FnOnce(&mut Emitter, Val)) {
        self.each(self.begin, self.end, body);
    }
    /// Runs the body for each of `count` items, of which a task has `per_task` and the last task the rest.
    pub fn items(&mut self, per_task: usize, count: usize, body: impl FnOnce(&mut Emitter, Val)) {
        self.tasks(|e, task| {
            let lo = e.mul_const(task, per_task);
            let hi = e.add_const(lo, per_task);
            let all = e.i64(count);
            let hi = e.min(hi, all);
            e.each(lo, hi, body);
        });
    }
    /// `if cond { then } else { otherwise }`, both giving values of the types `results`.
    pub fn branch(
        &mut self,
        cond: Val,
        results: &[Ty],
        then: impl FnOnce(&mut Emitter) -> Vec<Val>,
        otherwise: impl FnOnce(&mut Emitter) -> Vec<Val>,
    ) -> Vec<Val> {
        let out: Vec<Val> = results.iter().map(|&ty| self.fresh(ty)).collect();
        let (names, types) = (Self::names(&out), Self::types(&out));
        if out.is_empty() {
            self.line(format_args!("scf.if {} {{", cond.name()));
        } else {
            self.line(format_args!("{names} = scf.if {} -> ({types}) {{", cond.name()));
        }
        self.depth += 1;
        let values = then(self);
        self.close_with(&values, "} else {");
        self.depth += 1;
        let values = otherwise(self);
        self.close(&values);
        out
    }
    /// `if cond { then }`.
    pub fn when(&mut self, cond: Val, then: impl FnOnce(&mut Emitter)) {
        self.line(format_args!("scf.if {} {{", cond.name()));
        self.depth += 1;
        then(self);
        self.close(&[]);
    }
    fn close(&mut self, yields: &[Val]) {
        self.close_with(yields, "}");
    }
    fn close_with(&mut self, yields: &[Val], end: &str) {
        if !yields.is_empty() {
            let (names, types) = (Self::names(yields), Self::types(yields));
            self.line(format_args!("scf.yield {names} : {types}"));
        }
        self.depth -= 1;
        self.line(format_args!("{end}"));
    }
}
