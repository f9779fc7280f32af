//! Properties of this crate over random modules.
#![allow(clippy::unwrap_used)]
use super::{Config, Rng, convert, max_difference, random_inputs, random_module};
use crate::entity::{RegionId, ValueId};
use crate::interp::{Options, run};
use crate::module::{Func, Module, Op};
use crate::ops::Opcode;
use crate::parse::parse;
use crate::verify::{verify, verify_text};
use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use std::collections::{BTreeSet, HashMap};

fn everything() -> Config {
    Config { packed: true, rows: true, training: true, ..Config::default() }
}

/// Compares two functions up to the numbering of entities and the spelling of value names.
struct Same<'a> {
    a: &'a Func,
    b: &'a Func,
    values: HashMap<ValueId, ValueId>,
}

impl Same<'_> {
    fn funcs(a: &Func, b: &Func) {
        assert_eq!((&a.name, &a.args, &a.outputs), (&b.name, &b.args, &b.outputs));
        Same { a, b, values: HashMap::new() }.regions(a.body, b.body);
    }
    fn define(&mut self, a: &[ValueId], b: &[ValueId]) {
        assert_eq!(a.len(), b.len());
        for (&a, &b) in a.iter().zip(b) {
            assert_eq!(self.a.values[a].ty, self.b.values[b].ty);
            assert_eq!(self.a.values[a].name.is_some(), self.b.values[b].name.is_some());
            self.values.insert(a, b);
        }
    }
    fn uses(&self, a: &[ValueId], b: &[ValueId]) {
        assert_eq!(a.iter().map(|v| self.values[v]).collect::<Vec<_>>(), b);
    }
    fn regions(&mut self, a: RegionId, b: RegionId) {
        let (ra, rb) = (&self.a.regions[a], &self.b.regions[b]);
        self.define(&ra.args, &rb.args);
        assert_eq!(ra.ops.len(), rb.ops.len());
        for (&x, &y) in ra.ops.iter().zip(&rb.ops) {
            let (x, y) = (&self.a.ops[x], &self.b.ops[y]);
            assert_eq!((x.opcode, &x.attrs, x.loc), (y.opcode, &y.attrs, y.loc));
            self.uses(&x.operands, &y.operands);
            for (&p, &q) in x.regions.iter().zip(&y.regions) {
                self.regions(p, q);
            }
            self.define(&x.results, &y.results);
        }
        self.uses(&ra.yields, &rb.yields);
    }
}

#[test]
fn random_modules_contain_everything() {
    let (mut met, mut reverse, mut updates, mut of_rows) = (BTreeSet::new(), 0, 0, 0);
    for seed in 0..300 {
        let module = random_module(seed, &everything());
        let func = &module.funcs[0];
        met.extend(func.walk().into_iter().map(|(_, op)| func.ops[op].opcode));
        reverse += func.ops.values().filter(|op| op.opcode == Opcode::Loop && op.flag("reverse")).count();
        let is_of_rows = |op: &&Op| op.opcode == Opcode::CacheUpdate && func.ty(op.operands[3]).rank() > 0;
        of_rows += func.ops.values().filter(is_of_rows).count();
        updates += func.outputs.iter().filter(|o| o.updates).count();
    }
    let missing: Vec<_> = Opcode::ALL.iter().filter(|o| !met.contains(o)).collect();
    let counts = [reverse, updates, of_rows];
    assert!(missing.is_empty() && !counts.contains(&0), "{missing:?} {counts:?}");
}

proptest! {
    // A fixed seed: the same cases on every machine. PROPTEST_CASES=10000 looks further.
    #![proptest_config(ProptestConfig { rng_seed: RngSeed::Fixed(3), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn print_and_parse(seed: u64) {
        let module = random_module(seed, &everything());
        prop_assert_eq!(verify_text(&module), None);
        let text = module.to_string();
        let again = parse(&text).unwrap();
        prop_assert_eq!(again.to_string(), text);
        prop_assert_eq!(&again.params, &module.params);
        Same::funcs(&module.funcs[0], &again.funcs[0]);
        prop_assert_eq!(verify_text(&again), None);
    }

    #[test]
    fn precisions_agree(seed: u64) {
        let module = random_module(seed, &Config { jumps: false, ..everything() });
        let inputs = random_inputs(&module, "f", seed);
        let wide = run(&module, "f", &inputs, &mut Options::default()).unwrap();
        let mut options = Options { replay: wide.trips.clone(), ..Options::default() };
        let narrow = run::<f32>(&module, "f", &convert(&inputs), &mut options).unwrap();
        prop_assert_eq!(&narrow.trips, &wide.trips);
        let (difference, name) = max_difference(&wide, &narrow);
        prop_assert!(difference < 2e-2, "{} differs by {}", name, difference);
    }

    #[test]
    fn runs_repeat(seed: u64) {
        let module = random_module(seed, &everything());
        let inputs = random_inputs(&module, "f", seed);
        let first = run(&module, "f", &inputs, &mut Options::default()).unwrap();
        let again = run(&parse(&module.to_string()).unwrap(), "f", &inputs, &mut Options::default()).unwrap();
        prop_assert_eq!(max_difference(&first, &again).0, 0.0);
    }

    #[test]
    fn any_text_is_parsed_or_refused(text: String) {
        let _ = parse(&text);
        let _ = parse(&format!("module \"m\" func \"f\"() {{ {text}"));
    }

    #[test]
    fn mutated_text_is_refused_or_judged(seed: u64, edits in 1usize..6) {
        let mut rng = Rng::new(seed);
        let config = Config { ops: 10, ..everything() };
        let mut text: Vec<char> = random_module(seed % 64, &config).to_string().chars().collect();
        let words = ["%0", "loop", "cache", "yield", "f32[", "]", "{", "}", "-1", "99999999999999999999", "nan(", "\"", "@"];
        for _ in 0..edits {
            let at = rng.below(text.len());
            let end = (at + rng.below(12)).min(text.len());
            let new: Vec<char> = match rng.below(4) {
                0 => Vec::new(),
                1 => rng.pick(&words).chars().collect(),
                2 => vec![char::from(rng.below(128) as u8)],
                _ => {
                    let from = rng.below(text.len());
                    text[from..(from + rng.below(40)).min(text.len())].to_vec()
                }
            };
            text.splice(at..end, new);
        }
        judge(parse(&text.into_iter().collect::<String>()).ok());
    }

    #[test]
    fn numbers_and_names_swapped(seed: u64) {
        // Swaps tokens of one kind: such texts often parse, and reach the verifier.
        let text = random_module(seed % 64, &Config { ops: 10, ..everything() }).to_string();
        let mut rng = Rng::new(seed);
        let mut tokens: Vec<String> = Vec::new();
        for c in text.chars() {
            match tokens.last_mut() {
                Some(t) if c.is_alphanumeric() && t.chars().all(|c| c.is_alphanumeric() || c == '%') => t.push(c),
                _ => tokens.push(c.to_string()),
            }
        }
        for _ in 0..3 {
            let a = rng.below(tokens.len());
            let kind = |t: &str| (t.starts_with('%'), t.chars().all(|c| c.is_ascii_digit()), t.len() > 1);
            let alike: Vec<usize> = (0..tokens.len()).filter(|&i| kind(&tokens[i]) == kind(&tokens[a])).collect();
            let b = rng.pick(&alike);
            tokens[a] = tokens[b].clone();
        }
        judge(parse(&tokens.concat()).ok());
    }
}

/// A module that parses can be printed and verified; one that verifies can be measured and, if small, run.
fn judge(module: Option<Module>) {
    let Some(module) = module else { return };
    let text = module.to_string();
    assert_eq!(parse(&text).map(|m| m.to_string()), Ok(text));
    if verify(&module).is_err() {
        return;
    }
    let mut elements = 0;
    for func in &module.funcs {
        let cost = crate::cost::func_cost(func);
        elements += cost.total(4).bytes + cost.total(4).flops;
        elements += func.values.values().map(|v| v.ty.elements() as u64).max().unwrap_or(0);
    }
    let _ = crate::cost::param_count(&module);
    if elements < 10_000_000
        && let Some(func) = module.funcs.first()
    {
        let inputs = random_inputs(&module, &func.name, 1);
        let _ = run(&module, &func.name, &inputs, &mut Options::default());
    }
}
