use super::testing::*;
use super::*;

/// Inputs of an entry of the test program, in order.
fn inputs(ids: &[i32], steps: i32, initial: &[f32]) -> Vec<Buffer> {
    let bytes = |x: &[i32]| Buffer::copy_of(bytemuck::cast_slice(x)).unwrap();
    let cache = Buffer::zeroed(MAX_STEPS * CONTEXT * DIM * 4).unwrap();
    vec![bytes(ids), bytes(&[0]), bytes(&[steps]), Buffer::copy_of(bytemuck::cast_slice(initial)).unwrap(), cache]
}

fn run(
    executor: &mut Executor,
    entry: usize,
    ids: &[i32],
    steps: i32,
    initial: &[f32],
) -> (Vec<Vec<f32>>, Outcome, States) {
    let mut inputs = inputs(ids, steps, initial);
    let mut outputs: Vec<Buffer> =
        executor.output_bytes(entry).into_iter().map(|b| Buffer::zeroed(b).unwrap()).collect();
    let mut states = States::new();
    let mut pointers: Vec<&mut Buffer> = inputs.iter_mut().collect();
    let outcome = executor.run(entry, &mut pointers, &mut outputs, Some(&mut states), AfterExit::Leave).unwrap();
    let floats = |b: &Buffer| bytemuck::cast_slice::<u8, f32>(b).to_vec();
    let mut values: Vec<Vec<f32>> = outputs.iter().map(floats).collect();
    values.push(floats(&inputs[4]));
    (values, outcome, states)
}

fn example() -> (Vec<i32>, Vec<f32>) {
    (
        (0..CHUNK as i32).map(|i| (i * 5 + 1) % VOCABULARY as i32).collect(),
        (0..CHUNK * DIM).map(|i| (i as f32 * 0.37).sin()).collect(),
    )
}

#[test]
fn computes_what_the_program_says_at_any_step_count() {
    let model = model(3);
    let (ids, initial) = example();
    for threads in [1, 2, 3] {
        let mut executor = Executor::new(model.clone(), threads).unwrap();
        for steps in 0..=MAX_STEPS {
            let expected = reference(&model, &ids, &initial, (0, CHUNK), steps);
            let (values, outcome, states) = run(&mut executor, 0, &ids, steps as i32, &initial);
            assert_eq!(outcome.trips, steps);
            assert_eq!(values[0], expected[steps]);
            for step in 0..steps {
                let bonus = if step + 1 == steps { 1000.0 } else { 0.0 };
                let stacked = &values[1][step * CHUNK * DIM..][..CHUNK * DIM];
                assert!(stacked.iter().zip(&expected[step + 1]).all(|(a, b)| *a == b + bonus), "step {step}");
                assert_eq!(bytemuck::cast_slice::<u8, f32>(&states[step][0]), expected[step + 1]);
                // The slot of the step.
                assert_eq!(values[4][step * CONTEXT * DIM], 1.0);
            }
            assert_eq!(states.len(), steps);
            assert!(values[4][steps * CONTEXT * DIM..].iter().all(|x| *x == 0.0));
            let sum = |i: usize| {
                (0..MAX_STEPS).map(|r| if r < steps { values[1][r * CHUNK * DIM + i] } else { 0.0 }).sum::<f32>()
            };
            assert!((0..CHUNK * DIM).all(|i| values[2][i] == sum(i)), "{steps} steps");
            assert_eq!(values[3][0].to_bits(), steps as u32);
        }
    }
}

#[test]
fn leaves_early_on_every_thread_alike() {
    let model = model(3);
    let (ids, mut initial) = example();
    initial[0] = 2.0 * LIMIT;
    let expected = reference(&model, &ids, &initial, (0, CHUNK), MAX_STEPS);
    let trips = (1..=MAX_STEPS).find(|&r| expected[r][0] > LIMIT).unwrap_or(MAX_STEPS);
    for threads in [1, 2, 4] {
        let mut executor = Executor::new(model.clone(), threads).unwrap();
        for _ in 0..200 {
            let (values, outcome, _) = run(&mut executor, 1, &ids, MAX_STEPS as i32, &initial);
            assert_eq!(outcome.trips, trips);
            assert_eq!(values[0], expected[trips]);
        }
    }
}

#[test]
fn results_are_bit_identical_for_any_number_of_threads() {
    let model = model(8);
    let (ids, initial) = example();
    let mut one = Executor::new(model.clone(), 1).unwrap();
    let expected = run(&mut one, 0, &ids, 5, &initial).0;
    for threads in [2, 3, 7] {
        let mut executor = Executor::new(model.clone(), threads).unwrap();
        for _ in 0..100 {
            assert!(run(&mut executor, 0, &ids, 5, &initial).0 == expected, "{threads} threads");
        }
    }
}

#[test]
fn records_times() {
    let model = model(1);
    let (ids, initial) = example();
    let mut executor = Executor::new(model.clone(), 2).unwrap();
    executor.start_profile();
    run(&mut executor, 0, &ids, 4, &initial);
    let profile = executor.take_profile().unwrap();
    assert!(executor.take_profile().is_none());
    let times = profile.kernels(model.program());
    let calls: std::collections::BTreeMap<_, _> = times.iter().map(|t| (t.kernel.as_str(), t.calls)).collect();
    assert_eq!(calls, [("add_8", 4), ("embed_8", 1), ("halve_8", 4), ("sum_8", 1)].into());
    assert!(times.iter().all(|t| t.lines.len() == 1 && t.seconds > 0.0 && t.busy > 0.0));
    assert_eq!((profile.outside().len(), profile.dropped()), (2, 0));
    let mut trace = Vec::new();
    profile.write_trace(model.program(), &mut trace).unwrap();
    let trace: serde_json::Value = serde_json::from_slice(&trace).unwrap();
    // One for each execution and thread, and more where a thread waited or helped.
    assert!(trace["traceEvents"].as_array().unwrap().len() >= 2 * 10);
    assert_eq!(trace["traceEvents"][0]["name"], "embed_8");
}

#[test]
fn memory_that_does_not_fit_is_an_error() {
    let mut executor = Executor::new(model(1), 1).unwrap();
    let (ids, initial) = example();
    let mut inputs = inputs(&ids[1..], 1, &initial);
    let mut pointers: Vec<&mut Buffer> = inputs.iter_mut().collect();
    assert!(executor.run(0, &mut pointers, &mut [], None, AfterExit::Leave).is_err());
    assert!(executor.run(9, &mut pointers, &mut [], None, AfterExit::Leave).is_err());
}

/// Breaks the program in one place at a time; none may be accepted.
#[test]
fn malformed_programs_are_refused() {
    use rdc_ir::entity::Entity;
    use rdc_ir::program::{Beyond, Exit, KvPolicy, Offset, Program, Step};
    fn inner(program: &mut Program) -> &mut rdc_ir::program::LoopStep {
        match &mut program.entries[0].steps[3] {
            Step::Loop(inner) => inner,
            _ => unreachable!("the test program's fourth step is its loop"),
        }
    }
    /// The second buffer of a pair, and its trips.
    fn pair(program: &mut Program) -> (&mut usize, &mut usize) {
        let pair = program.entries[0].buffers.iter_mut().find_map(|buffer| match &mut buffer.place {
            Place::Pair { odd, trips, .. } => Some((odd, trips)),
            _ => None,
        });
        pair.unwrap()
    }
    fn first(program: &mut Program) -> &mut rdc_ir::program::Launch {
        match &mut program.entries[0].steps[0] {
            Step::Launch(launch) => launch,
            _ => unreachable!("the test program's first step is a launch"),
        }
    }
    let breakers: Vec<fn(&mut Program)> = vec![
        |p| p.entries[0].arena -= 64,
        |p| p.entries[0].buffers[0].place = Place::Weight(7),
        |p| p.entries[0].buffers[0].ty = rdc_ir::Type::f32([usize::MAX, 3]),
        |p| p.entries[0].buffers[6].place = Place::Arena(8),
        |p| p.entries[0].inputs[0].buffer = 99,
        |p| p.entries[0].inputs[2].buffer = 1,
        |p| p.entries[0].outputs[0].buffer = 99,
        |p| first(p).kernel = 99,
        |p| first(p).args.truncate(3),
        |p| first(p).args[0].buffer = 99,
        |p| first(p).args[3].buffer = 4,
        |p| first(p).args[3].offset = Offset::Fixed(1 << 20),
        |p| first(p).args[3].offset = Offset::Step { stride: 1 },
        |p| inner(p).advance.step = 0,
        |p| inner(p).steps = 6,
        |p| inner(p).max_steps = MAX_STEPS + 1,
        |p| inner(p).max_steps = usize::MAX,
        |p| inner(p).advance.exit = Some(Exit { done: 0, allowed: 0 }),
        |p| {
            let allowed = p.entries[0].buffers.iter().position(|b| b.place == Place::MayExit).unwrap();
            inner(p).advance.exit = Some(Exit { done: 6, allowed });
        },
        |p| inner(p).body.retain(|step| *step != Step::Barrier),
        |p| *pair(p).0 = 0,
        |p| *pair(p).0 = 99,
        |p| *pair(p).0 = inner(p).carried[0],
        |p| *pair(p).1 = 6,
        |p| p.entries[0].steps[4] = Step::Zero { buffer: 6, beyond: Some(Beyond { trips: 6, stride: 0 }) },
        |p| inner(p).carried[0] = 99,
        |p| p.entries[0].steps[1] = Step::Copy { dst: 4, src: 4 },
        // A kernel with an operation that it does not have.
        |p| {
            let body = p.kernels[0].func.body;
            p.kernels[0].func.regions[body].ops.push(rdc_ir::OpId::new(99));
        },
        |p| {
            let body = p.kernels[0].func.body;
            let result = p.kernels[0].func.regions[body].yields[0];
            p.kernels[0].func.values[result].def = rdc_ir::ValueDef::Result(rdc_ir::OpId::new(99), 0);
        },
    ];
    let addressed: Vec<fn(&mut Program)> = vec![
        // Arguments that start in their buffer but end beyond it.
        |p| first(p).args[3].offset = Offset::Fixed(4),
        |p| first(p).args[0].offset = Offset::Fixed(usize::MAX),
        |p| second(p).args[6].offset = Offset::Fixed(MAX_STEPS * CHUNK * DIM * 4 - 4),
        |p| second(p).args[6].offset = Offset::Step { stride: CHUNK * DIM * 4 + 4 },
        |p| second(p).args[6].offset = Offset::Step { stride: usize::MAX },
        |p| slot(p, KvPolicy::Full, 1, CONTEXT * DIM * 4),
        |p| slot(p, KvPolicy::Full, 0, CONTEXT * DIM * 4 + 4),
        |p| slot(p, KvPolicy::Full, usize::MAX, usize::MAX),
        |p| slot(p, KvPolicy::Block(0), 0, 0),
        |p| slot(p, KvPolicy::Modulo(0), 0, 0),
        // A cache, which kernels update in place, that is a weight.
        |p| {
            let ty = p.entries[0].buffers[5].ty.clone();
            p.weights[0].ty = rdc_ir::Type::f32(ty.shape);
            p.entries[0].buffers[0].ty = p.weights[0].ty.clone();
            second(p).args[4].buffer = 0;
        },
        // Rows apart: of an input, of what a kernel takes side by side, of an output, of what a loop carries, and overlapping.
        |p| p.entries[0].buffers[4].pitch = Some(4096),
        |p| {
            let buffer = first(p).args[3].buffer;
            p.entries[0].buffers[buffer].pitch = Some(DIM * 4 + 4);
            p.entries[0].arena *= 2;
        },
        |p| {
            let kernel = first(p).kernel;
            p.kernels[kernel].pointers[3].pitch = Some(DIM * 4 + 4);
        },
        |p| {
            let buffer = p.entries[0].outputs[0].buffer;
            p.entries[0].buffers[buffer].pitch = Some(4096);
            p.entries[0].arena *= 100;
        },
        |p| {
            let buffer = inner(p).carried[0];
            let behind: Vec<usize> = p.entries[0].behind(buffer).chain([buffer]).collect();
            behind.into_iter().for_each(|buffer| p.entries[0].buffers[buffer].pitch = Some(4096));
            p.entries[0].arena *= 100;
        },
        |p| {
            let (kernel, buffer) = (first(p).kernel, first(p).args[3].buffer);
            p.kernels[kernel].pointers[3].pitch = Some(DIM * 4 - 4);
            p.entries[0].buffers[buffer].pitch = Some(DIM * 4 - 4);
        },
        // A result in an input.
        |p| {
            second(p).args[6].buffer = 4;
            second(p).args[6].offset = Offset::Step { stride: 0 };
        },
    ];
    fn second(program: &mut Program) -> &mut rdc_ir::program::Launch {
        match &mut inner(program).body[2] {
            Step::Launch(launch) => launch,
            _ => unreachable!("the third step of the test program's loop is a launch"),
        }
    }
    fn slot(program: &mut Program, policy: KvPolicy, base: usize, stride: usize) {
        second(program).args[4].offset = Offset::Slot { policy, layer: 0, layers: 1, base, stride };
    }
    for (index, breaker) in addressed.iter().enumerate() {
        let mut program = program();
        breaker(&mut program);
        assert!(crate::validate::program(&program).is_err(), "addressed {index}");
    }
    for (index, breaker) in breakers.iter().enumerate() {
        let mut program = program();
        breaker(&mut program);
        // A step of 1 byte outside a loop stays at 0 and is fine.
        assert_eq!(crate::validate::program(&program).is_ok(), index == 12, "breaker {index}");
    }
}
