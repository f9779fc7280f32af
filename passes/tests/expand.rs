//! `expand` keeps the meaning: to 1e-12 in the f64 interpreter, on random shapes.
#![allow(clippy::unwrap_used)]

use rdc_ir::interp::{Data, Inputs, Options, Tensor, run};
use rdc_ir::testing::{Rng, max_difference};
use rdc_ir::{ArgRole, Attr, Builder, DType, Func, Module, Opcode, Type, ValueId, verify::verify_text};
use rdc_passes::expand;
use rdc_passes::tile::Cpu;
use std::rc::Rc;

fn run_expand(module: &mut Module) {
    expand::run(module, &Cpu { lanes: 2, mr: 2, nr: 4, l1: 32 << 10, l2: 256 << 10 });
}

/// A function over inputs drawn at random.
struct Case {
    func: Func,
    inputs: Inputs<f64>,
    rng: Rng,
}

impl Case {
    fn new(seed: u64) -> Case {
        let inputs = Inputs { params: Default::default(), args: Default::default() };
        Case { func: Func::new("f"), inputs, rng: Rng::new(seed) }
    }
    fn arg(&mut self, ty: Type, data: Data<f64>) -> ValueId {
        let name = format!("x{}", self.func.args.len());
        self.inputs.args.insert(name.clone(), Rc::new(Tensor { ty: ty.clone(), data }));
        Builder::new(&mut self.func).arg(name, ArgRole::Input, ty)
    }
    fn floats(&mut self, shape: &[usize]) -> ValueId {
        let ty = Type::f32(shape);
        let values = (0..ty.elements()).map(|_| 3.0 * self.rng.unit() as f64).collect();
        self.arg(ty, Data::Float(values))
    }
    /// Labels, a third of them ignored.
    fn labels(&mut self, shape: &[usize], classes: usize) -> ValueId {
        let ty = Type::new(DType::I32, shape);
        let mut one = || if self.rng.one_in(3) { -100 } else { self.rng.below(classes) as i32 };
        let values = (0..ty.elements()).map(|_| one()).collect();
        self.arg(ty, Data::Int(values))
    }
    fn op(&mut self, opcode: Opcode, operands: &[ValueId], attrs: Vec<Attr>) -> Vec<ValueId> {
        let mut b = Builder::new(&mut self.func);
        let values = b.try_op(opcode, operands, attrs).unwrap();
        for &value in &values {
            let name = format!("y{}", b.func.outputs.len());
            b.output(name, value, false);
        }
        values
    }
    /// Applies a pass and compares. Returns the function.
    fn check(self, pass: fn(&mut Module), gone: &[Opcode], what: &str) -> Func {
        let mut module = Module { name: "m".into(), params: Default::default(), funcs: vec![self.func] };
        assert_eq!(verify_text(&module), None, "{what}");
        let expected = run(&module, "f", &self.inputs, &mut Options::default()).unwrap();
        let before = module.to_string();
        pass(&mut module);
        assert_eq!(verify_text(&module), None, "{what}\n{before}\n{module}");
        let found = run(&module, "f", &self.inputs, &mut Options::default()).unwrap();
        let (d, output) = max_difference(&expected, &found);
        assert!(d <= 1e-12, "{what}, {output}: {d}\n{before}\n{module}");
        let func = module.funcs.remove(0);
        let left = func.walk().into_iter().find(|&(_, op)| gone.contains(&func.ops[op].opcode));
        assert!(left.is_none(), "{what}: {} is left\n{before}", func.ops[left.unwrap().1].opcode.info().mnemonic);
        func
    }
}

const LOSSES: &[Opcode] =
    &[Opcode::CrossEntropy, Opcode::CrossEntropyGrad, Opcode::LinearCrossEntropy, Opcode::LinearCrossEntropyGrad];

fn has_loop(func: &Func) -> bool {
    func.walk().iter().any(|&(_, op)| func.ops[op].opcode == Opcode::Loop)
}

#[test]
fn losses_keep_their_meaning() {
    for seed in 0..60 {
        let mut case = Case::new(seed);
        let lead: &[usize] = case.rng.pick(&[&[][..], &[1], &[5], &[2, 3], &[2, 64], &[3, 400], &[2, 2, 331]]);
        let (k, classes) = (1 + case.rng.below(6), 2 + case.rng.below(9));
        let z_loss = vec![Attr::float(case.rng.pick(&[0.0, 0.01]))];
        let labels = case.labels(lead, classes);
        let what = format!("seed {seed}, {lead:?}, {k} to {classes}");
        let linear = case.rng.one_in(2);
        let grad = case.rng.one_in(2);
        let mut operands = vec![case.floats(&[lead, &[if linear { k } else { classes }]].concat())];
        if linear {
            operands.push(case.floats(&[classes, k]));
        }
        operands.push(labels);
        if grad {
            operands.push(case.floats(lead));
        }
        if linear && case.rng.one_in(2) {
            operands.push(case.floats(&[classes]));
        }
        let opcode = LOSSES[2 * linear as usize + grad as usize];
        case.op(opcode, &operands, z_loss);
        let func = case.check(run_expand, LOSSES, &what);
        let tokens: usize = lead.iter().product();
        assert_eq!(has_loop(&func), linear && tokens >= 1024, "{what}");
    }
}

/// A loss and its derivative, of a head whose input is computed a second time for it.
#[test]
fn a_loss_and_its_derivative_share_the_logits() {
    for seed in 0..40 {
        let mut case = Case::new(seed);
        let lead: &[usize] = case.rng.pick(&[&[][..], &[5], &[2, 3], &[3, 400]]);
        let (k, classes) = (2 + case.rng.below(5), 2 + case.rng.below(9));
        let labels = case.labels(lead, classes);
        let (x, w, weights) = (case.floats(&[lead, &[k]].concat()), case.floats(&[classes, k]), case.floats(lead));
        let bias = case.rng.one_in(2).then(|| case.floats(&[classes]));
        let [of_loss, of_other, of_labels] = [case.rng.one_in(4), case.rng.one_in(4), case.rng.one_in(4)];
        let what = format!("seed {seed}, {lead:?}, {k} to {classes}, {of_loss} {of_other} {of_labels}");
        let attrs = vec![Attr::float(case.rng.pick(&[0.0, 0.01]))];
        let head = |case: &mut Case, factor: f64| {
            let mut b = Builder::new(&mut case.func);
            let factor = b.constant(factor, DType::F32);
            b.op(Opcode::Mul, &[x, factor], vec![])
        };
        let first = head(&mut case, 0.5);
        let nll =
            case.op(Opcode::LinearCrossEntropy, &[&[first, w, labels][..], bias.as_slice()].concat(), attrs.clone());
        let factor = if of_loss { nll[0] } else { weights };
        let factor = Builder::new(&mut case.func).op(Opcode::Mul, &[weights, factor], vec![]);
        let again = head(&mut case, if of_other { 0.25 } else { 0.5 });
        let labels = if of_labels { case.labels(lead, classes) } else { labels };
        case.op(Opcode::LinearCrossEntropyGrad, &[&[again, w, labels, factor][..], bias.as_slice()].concat(), attrs);
        let func = case.check(run_expand, LOSSES, &what);
        let logits = |op: &rdc_ir::Op| op.opcode == Opcode::Matmul && op.flag("trans_b");
        let products = func.walk().into_iter().filter(|&(_, op)| logits(&func.ops[op])).count();
        assert_eq!(products, if of_loss || of_other || of_labels { 2 } else { 1 }, "{what}");
    }
}

#[test]
fn the_logits_of_all_tokens_never_exist() {
    let mut case = Case::new(1);
    let (x, w, labels) = (case.floats(&[2, 1024, 3]), case.floats(&[5, 3]), case.labels(&[2, 1024], 5));
    case.op(Opcode::LinearCrossEntropy, &[x, w, labels], vec![Attr::float(0.0)]);
    let func = case.check(run_expand, LOSSES, "a head");
    let largest = func.values.values().filter(|v| v.ty.last() == 5).map(|v| v.ty.elements()).max();
    assert_eq!(largest, Some(512 * 5));
}

#[test]
fn sums_keep_their_meaning() {
    for seed in 0..200 {
        let mut case = Case::new(seed);
        let rank = case.rng.below(5);
        let from: Vec<usize> = (0..rank).map(|_| 1 + case.rng.below(4)).collect();
        let lead = case.rng.below(rank + 1);
        let to: Vec<i64> = from[lead..].iter().map(|&n| if case.rng.one_in(2) { 1 } else { n as i64 }).collect();
        let what = format!("seed {seed}, {from:?} to {to:?}");
        let x = case.floats(&from);
        case.op(Opcode::SumTo, &[x], vec![Attr::Ints(to)]);
        case.check(run_expand, &[], &what);
    }
    for axis in 0..3 {
        for keep in [false, true] {
            let mut case = Case::new(axis as u64);
            let x = case.floats(&[2, 3, 4]);
            case.op(Opcode::ReduceSum, &[x], vec![Attr::Int(axis), Attr::Bool(keep)]);
            case.check(run_expand, &[], &format!("axis {axis}, keep {keep}"));
        }
    }
}

#[test]
fn a_loss_of_a_product_is_the_loss_of_a_linear_head() {
    for (bias, shared) in [(false, false), (true, false), (false, true)] {
        let mut case = Case::new(bias as u64);
        let (x, w, labels) = (case.floats(&[6, 3]), case.floats(&[5, 3]), case.labels(&[2, 3], 5));
        let row = case.floats(&[5]);
        let mut b = Builder::new(&mut case.func);
        let mut logits = b.op(Opcode::Matmul, &[x, w], vec![Attr::Bool(false), Attr::Bool(true)]);
        if bias {
            logits = b.op(Opcode::Add, &[row, logits], vec![]);
        }
        let logits = b.op(Opcode::Reshape, &[logits], vec![Attr::Ints(vec![2, 3, 5])]);
        if shared {
            b.output("logits", logits, false);
        }
        case.op(Opcode::CrossEntropy, &[logits, labels], vec![Attr::float(0.01)]);
        let gone: &[Opcode] = if shared { &[Opcode::LinearCrossEntropy] } else { &[Opcode::CrossEntropy] };
        case.check(expand::fuse_loss, gone, &format!("bias {bias}, shared {shared}"));
    }
}
