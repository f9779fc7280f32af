//! What is kept changes nothing about the gradients; frozen parameters, errors, and what later passes do.
use super::models::{MODELS, TOKENS, WIDE};
use super::support::{assert_close, loss, run_gradient, with_gradient};
use rdc_ir::training::Remat;
use rdc_ir::{Attr, Module, Opcode};
use rdc_passes::differentiate::{Options, kept, run};
use rdc_passes::tile::Backward;
use rdc_passes::{cse, dce, hoist};

fn options(remat: Remat) -> Options {
    Options { max_grad_steps: 4, remat, ..Options::default() }
}

fn within(budget: usize) -> Options {
    Options { budget, ..options(Remat::Auto) }
}

/// Every policy, with and without stacks for the gradients of weights.
fn all_options(module: &Module) -> Vec<Options> {
    let most = kept(module, &module.funcs[0], &options(Remat::None)).unwrap().bytes();
    let budgets = [0, most / 4, most / 2, most * 3 / 4, most].map(within);
    let policies = [Remat::None, Remat::Iteration].map(options).into_iter().chain(budgets);
    let stacks = [None, Some(200), Some(1 << 20)];
    policies
        .flat_map(|policy| stacks.map(|stack_weight_grads| Options { stack_weight_grads, ..policy.clone() }))
        .collect()
}

#[test]
fn policies_give_the_same_gradients() {
    for model in MODELS {
        let (module, inputs) = model.looped(7);
        let steps = if model.can_exit { [(0, 4), (0, 2)] } else { [(0, 4), (2, 3)] };
        for (n, k) in steps {
            let expected = run_gradient(&with_gradient(&module, &options(Remat::None)), &inputs, n, k);
            for options in all_options(&module) {
                let mut gradient = with_gradient(&module, &options);
                for pass in ["none", "hoist", "cse", "dce"] {
                    match pass {
                        "hoist" => hoist::run(&mut gradient),
                        "cse" => cse::run(&mut gradient),
                        "dce" => dce::run(&mut gradient),
                        _ => {}
                    }
                    assert_eq!(rdc_ir::verify::verify_text(&gradient), None, "{gradient}");
                    let found = run_gradient(&gradient, &inputs, n, k);
                    for ((name, f), (_, e)) in found.tensors.iter().zip(&expected.tensors) {
                        let what = format!("{}, {options:?}, {pass}, n = {n}, k = {k}, {name}", model.name);
                        assert_close(f.floats(), e.floats(), 1e-12, &what);
                    }
                }
            }
        }
    }
}

#[test]
fn budgets_are_kept_and_never_take_more_than_an_iteration() {
    let mut spared = false;
    for model in MODELS {
        let (module, _) = model.looped(7);
        let bytes = |options: Options| kept(&module, &module.funcs[0], &options).unwrap().bytes();
        let (most, iteration) = (bytes(options(Remat::None)), bytes(options(Remat::Iteration)));
        for budget in (0..=most).step_by(16) {
            let found = bytes(within(budget));
            assert!(found <= budget.max(iteration), "{}: {found} of {budget}, {iteration}", model.name);
            assert!(found <= most, "{}: {found} of {most}", model.name);
        }
        // Without a limit, only what costs less to compute again than to keep is not kept.
        let worth_it = bytes(within(usize::MAX));
        assert!(worth_it <= most, "{}: {worth_it} of {most}", model.name);
        assert_eq!(bytes(within(most)), worth_it, "{}", model.name);
        spared |= worth_it < most;
    }
    assert!(spared);
}

#[test]
fn budgets_are_used_up() {
    let (module, _) = WIDE.looped(7);
    let stacks = |budget| kept(&module, &module.funcs[0], &within(budget)).unwrap().bytes();
    let all = stacks(usize::MAX);
    // Of four iterations and eight tokens, in f32.
    let column = 4 * 8 * 4;
    // The narrow product alone is enough; of both, the wide one.
    assert_eq!(stacks(all - 100 * column), all - 128 * column);
    assert_eq!(stacks(all - 200 * column), all - 256 * column);
}

#[test]
fn an_iteration_keeps_the_carried_state_only() {
    let (module, _) = MODELS[0].looped(7);
    let iteration = kept(&module, &module.funcs[0], &options(Remat::Iteration)).unwrap();
    // The state, f32[2, 4], of four steps; the second carried value only adds up, so that no rule needs it.
    assert_eq!(iteration.stacks, 4 * 32);
    let none = kept(&module, &module.funcs[0], &options(Remat::None)).unwrap();
    assert!(none.stacks > 3 * iteration.stacks, "{none:?}");
}

#[test]
fn later_passes_do_not_merge_what_is_computed_again() {
    let (module, _) = MODELS[0].looped(7);
    let mut gradient = with_gradient(&module, &options(Remat::Iteration));
    [hoist::run, cse::run, dce::run].iter().for_each(|pass| pass(&mut gradient));
    let func = gradient.func("grad").unwrap();
    let tanhs = func.regions[func.body].ops.iter().filter(|&&op| func.ops[op].opcode == Opcode::Tanh).count();
    // The embedding's, forward and again for its derivative.
    assert_eq!(tanhs, 2);
}

#[test]
fn weights_are_one_product_where_that_moves_less() {
    let (module, _) = MODELS[0].looped(7);
    let in_loops = |stack_weight_grads| {
        let gradient = with_gradient(&module, &Options { stack_weight_grads, ..options(Remat::None) });
        let func = gradient.func("grad").unwrap();
        let is_sum = |op: &rdc_ir::Op| op.opcode == Opcode::Matmul && op.flag("trans_a");
        func.walk().iter().filter(|(region, op)| *region != func.body && is_sum(&func.ops[*op])).count()
    };
    // Half of the adapter, the gated matrix, the matrix behind it: of two tokens each.
    assert_eq!((in_loops(None), in_loops(Some(1 << 20)), in_loops(Some(0))), (3, 0, 3));
}

#[test]
fn sums_over_many_tokens_are_carried_in_parts() {
    let carried = |model: &super::models::Model| -> Vec<String> {
        let backward = Backward { partial_sums: 2, many_tokens: 16, ..Backward::default() };
        let options = Options { backward, ..options(Remat::None) };
        let gradient = with_gradient(&model.looped(7).0, &options);
        let func = gradient.func("grad").unwrap();
        let is_sum = |op: &rdc_ir::Op| op.opcode == Opcode::Matmul && op.flag("trans_a");
        let sums = func.walk().into_iter().filter(|(region, op)| *region != func.body && is_sum(&func.ops[*op]));
        sums.map(|(_, op)| func.ty(func.ops[op].results[0]).to_string()).collect()
    };
    assert_eq!(carried(&TOKENS), ["f32[2, 2, 2]", "f32[2, 2, 2]"]);
    assert!(carried(&MODELS[0]).iter().all(|ty| !ty.contains("[2, ")), "{:?}", carried(&MODELS[0]));
}

#[test]
fn frozen_parameters_have_no_output_and_unused_ones_are_zero() {
    let (mut module, inputs) = loss(1, |c| {
        let (used, _unused, frozen) = (c.param(&[2]), c.param(&[3]), c.param(&[2]));
        let product = c.map(Opcode::Mul, &[used, frozen]);
        c.op(Opcode::ReduceSum, &[product], vec![Attr::Int(0), Attr::Bool(false)])
    });
    run(&mut module, &Options { frozen: vec!["p2".into()], ..Options::default() }).unwrap();
    let outputs = super::support::execute(&module, "grad", &inputs);
    let names: Vec<&str> = outputs.tensors.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["loss", "grad.p0", "grad.p1"]);
    assert_eq!(outputs.get("grad.p0").unwrap(), &*inputs.params["p2"]);
    assert_eq!(outputs.get("grad.p1").unwrap().floats(), [0.0; 3]);
    assert!(module.param("grad.p0").unwrap().state && module.param("grad.p2").is_none());
}

#[test]
fn what_has_no_derivative_is_refused() {
    let (module, _) = loss(1, |c| {
        let (x, table) = (c.param(&[1, 2, 1, 2]), c.param(&[4, 1, 2]));
        let pos = c.ids(&[1], 2);
        let y = c.op(Opcode::Rope, &[x, table, pos], vec![Attr::Str("half".into())]);
        c.weighted_sum(y)
    });
    let refused = run(&mut module.clone(), &Options::default()).unwrap_err();
    assert_eq!(refused.to_string(), "rope: a rotary table cannot be learned");
    let frozen = Options { frozen: vec!["p1".into()], ..Options::default() };
    assert_eq!(run(&mut module.clone(), &frozen), Ok(()));
    let mut unnamed = module.clone();
    unnamed.funcs[0].outputs[0].name = "value".into();
    let refused = run(&mut unnamed, &Options::default()).unwrap_err();
    assert_eq!(refused.to_string(), "loss has no output `loss` of type f32[]");
}
