use super::*;
use crate::exec::testing::*;
use rdc_ir::DType;

fn session(threads: usize) -> Session {
    Session::new(model(3), threads).unwrap()
}

fn ids(length: usize) -> TensorMap {
    let ids: Vec<i32> = (0..length as i32).map(|i| (i * 7 + 2) % VOCABULARY as i32).collect();
    TensorMap::from([("input_ids".to_string(), Tensor::from_i32(&[1, length], &ids).unwrap())])
}

fn options(steps: usize, chunks: Option<&[usize]>) -> RunOptions {
    RunOptions {
        steps: Some(steps),
        seed: 5,
        chunks: chunks.map(<[usize]>::to_vec),
        states: true,
        ..RunOptions::default()
    }
}

fn drawn(positions: usize) -> Vec<f32> {
    let init = rdc_ir::Init::TruncNormal { std: 1.0, bound: 3.0 };
    let mut state = vec![0.0; positions * DIM];
    let rows = state.chunks_exact_mut(DIM).enumerate();
    rows.for_each(|(p, row)| crate::random::Stream::new(5, "initial_state", init).fill(0, p as u32, 0, row));
    state
}

#[test]
fn pieces_are_put_together() {
    let (length, steps) = (CHUNK + 3, 4);
    let inputs = ids(length);
    let all = inputs["input_ids"].as_i32().unwrap().to_vec();
    let state = drawn(length);
    for (threads, chunks) in [(1, None), (2, Some(&[8, 1, 1, 1][..])), (2, Some(&[3, 8]))] {
        let mut session = session(threads);
        let run = session.run(&inputs, &options(steps, chunks)).unwrap();
        let last = run.outputs["last"].as_f32().unwrap();
        assert_eq!(run.outputs["last"].shape, [1, length, DIM]);
        assert_eq!(run.outputs["all"].shape, [steps, 1, length, DIM]);
        assert_eq!(run.outputs["state_4"].data[..], run.outputs["last"].data[..]);
        assert_eq!(run.outputs.keys().filter(|k| k.starts_with("state_")).count(), steps);
        let mut start = 0;
        // (rows, chunk length of the function)
        let calls: &[(usize, usize)] = match chunks {
            None => &[(8, 8), (3, 8)],
            Some([8, ..]) => &[(8, 8), (1, 1), (1, 1), (1, 1)],
            _ => &[(3, 8), (8, 8)],
        };
        assert_eq!(run.trips, vec![steps; calls.len()]);
        for &(rows, chunk) in calls {
            let range = start * DIM..(start + rows) * DIM;
            let expected = reference(session.model(), &all[start..], &state[range.clone()], (start, chunk), steps);
            assert_eq!(last[range.clone()], expected[steps]);
            let stacked = run.outputs["all"].as_f32().unwrap();
            assert_eq!(stacked[length * DIM..][range.clone()], expected[2]);
            start += rows;
        }
    }
}

#[test]
fn one_call_gives_its_memory_away_and_the_next_run_has_its_own() {
    let mut session = session(2);
    let first = session.run(&ids(CHUNK), &options(2, None)).unwrap();
    let copy = first.outputs["last"].data.to_vec();
    let second = session.run(&ids(CHUNK), &options(3, None)).unwrap();
    assert_eq!(first.outputs["last"].data[..], copy[..]);
    assert_ne!(second.outputs["last"].data[..], copy[..]);
    assert_eq!(
        (&first.outputs["all"].shape[..], first.outputs["all"].data.len()),
        (&[2, 1, CHUNK, DIM][..], 2 * CHUNK * DIM * 4)
    );
    assert_eq!(first.outputs["trips"].as_i32().unwrap(), [2]);
    let none = session.run(&ids(CHUNK), &options(0, None)).unwrap();
    assert_eq!(none.outputs["last"].as_f32().unwrap(), drawn(CHUNK));
    assert_eq!(none.outputs["all"].shape, [0, 1, CHUNK, DIM]);
}

#[test]
fn a_given_state_is_used_by_position() {
    let mut session = session(1);
    let mut inputs = ids(CHUNK + 1);
    let long = drawn(CONTEXT);
    inputs.insert("initial_state".into(), Tensor::from_f32(&[1, CONTEXT, DIM], &long).unwrap());
    let given = session.run(&inputs, &RunOptions { seed: 99, ..options(3, None) }).unwrap();
    let made = session.run(&ids(CHUNK + 1), &options(3, None)).unwrap();
    assert_eq!(given.outputs["last"].data[..], made.outputs["last"].data[..]);
    // Continued in a state.
    let mut state = session.new_state();
    session.run_from(&mut state, &ids(CHUNK), &options(3, None)).unwrap();
    let ids = inputs["input_ids"].as_i32().unwrap()[CHUNK];
    inputs.insert("input_ids".into(), Tensor::from_i32(&[1, 1], &[ids]).unwrap());
    let next = session.run_from(&mut state, &inputs, &options(3, None)).unwrap();
    assert_eq!(state.position, CHUNK + 1);
    assert_eq!(next.outputs["last"].data[..], made.outputs["last"].data[CHUNK * DIM * 4..]);
}

#[test]
fn every_call_leaves_for_itself_and_later_ones_find_every_step() {
    let mut session = session(2);
    let exit = RunOptions { readout: Some("exit".into()), ..options(MAX_STEPS, None) };
    let large = |rows: usize| vec![2.0 * LIMIT; rows * DIM];
    let inputs = |rows: usize| {
        let mut inputs = ids(rows);
        inputs.insert("initial_state".into(), Tensor::from_f32(&[1, rows, DIM], &large(rows)).unwrap());
        inputs
    };
    let slots = |state: &KvState| {
        let numbers: &[f32] = bytemuck::cast_slice(&state.caches.as_ref().unwrap().1[0]);
        numbers.iter().step_by(CONTEXT * DIM).take_while(|&&x| x == 1.0).count()
    };
    // No later call: the loop leaves.
    let mut state = session.new_state();
    let one = session.run_from(&mut state, &inputs(CHUNK), &RunOptions { last: true, ..exit.clone() }).unwrap();
    assert!(one.trips[0] < MAX_STEPS && slots(&state) == one.trips[0], "{:?}", one.trips);
    assert_eq!(one.outputs["all"].shape, [one.trips[0], 1, CHUNK, DIM]);
    // Later calls: the results are those of the exit, and the caches have all steps.
    let mut state = session.new_state();
    let pieces = session.run_from(&mut state, &inputs(CHUNK + 2), &exit).unwrap();
    assert!(pieces.trips.len() > 1 && pieces.trips.iter().all(|&t| t < MAX_STEPS), "{:?}", pieces.trips);
    assert_eq!(slots(&state), MAX_STEPS);
    let at_exit = one.outputs["last"].as_f32().unwrap();
    assert_eq!(pieces.outputs["last"].as_f32().unwrap()[..CHUNK * DIM], *at_exit);
    assert_eq!(pieces.trips[0], one.trips[0]);
    let most = *pieces.trips.iter().max().unwrap();
    assert_eq!(pieces.outputs["all"].shape, [most, 1, CHUNK + 2, DIM]);
    assert!(!pieces.outputs.contains_key(&format!("state_{}", most + 1)));
}

#[test]
fn padding_leaves_nothing_in_a_cache() {
    let ty = Type::cache(DType::F32, [2, 1, 4, 2, 3]);
    let mut cache = Buffer::zeroed(ty.bytes()).unwrap();
    cache.fill(1);
    forget(&mut cache, &ty, 2..5);
    for (head, positions) in cache.chunks_exact(4 * 3 * 4).enumerate() {
        assert!(positions[..2 * 12].iter().all(|&b| b == 1) && positions[2 * 12..].iter().all(|&b| b == 0), "{head}");
    }
}

#[test]
fn a_state_is_of_the_read_outs_with_its_caches() {
    let list = |slots: usize| vec![("cache_k".to_string(), Type::cache(DType::F32, [slots, 1, 4, 2, 3]))];
    let mut state = KvState { position: 0, caches: None };
    assert_eq!(state.caches(0, &list(2)).unwrap()[0].len(), 2 * 96);
    // Nothing is in it yet.
    assert_eq!(state.caches(1, &list(3)).unwrap()[0].len(), 3 * 96);
    state.position = 1;
    assert!(state.caches(0, &list(2)).unwrap_err().to_string().contains("read-out"));
    assert!(state.caches(1, &list(2)).unwrap_err().to_string().contains("another model"));
    assert!(state.caches(1, &list(3)).is_ok());
}

#[test]
fn what_does_not_fit_is_an_error_that_names_the_flag() {
    let mut session = session(1);
    let mut error = |inputs: &TensorMap, options: &RunOptions| session.run(inputs, options).unwrap_err().to_string();
    let plain = options(2, None);
    assert!(error(&TensorMap::new(), &plain).contains("`input_ids`"));
    assert!(error(&ids(CONTEXT + 1), &plain).contains("--context"));
    assert!(error(&ids(3), &options(MAX_STEPS + 1, None)).contains("--max-steps 7"));
    assert!(error(&ids(3), &options(1, Some(&[2]))).contains("--chunks"));
    assert!(error(&ids(3), &RunOptions { readout: Some("act".into()), ..plain.clone() }).contains("fixed, exit"));
    let with = |name: &str, tensor: Tensor| {
        let mut inputs = ids(3);
        inputs.insert(name.into(), tensor);
        inputs
    };
    let i32s = |shape: &[usize], x: &[i32]| Tensor::from_i32(shape, x).unwrap();
    let message = error(&with("input_ids", i32s(&[1, 3], &[0, VOCABULARY as i32, 0])), &plain);
    assert!(message.contains("id 11 at row 0, position 1; ids are 0 to 10"), "{message}");
    assert!(error(&with("input_ids", i32s(&[1, 3], &[0, 0, -1])), &plain).contains("id -1"));
    assert!(error(&with("input_ids", i32s(&[2, 1], &[0, 0])), &plain).contains("--batch 2"));
    assert!(error(&with("input_ids", i32s(&[3], &[0; 3])), &plain).contains("axes"));
    assert!(error(&with("input_ids", i32s(&[1, 0], &[])), &plain).contains("empty"));
    assert!(error(&with("input_ids", Tensor::zeros(DType::F32, &[1, 3]).unwrap()), &plain).contains("f32"));
    for shape in [&[1, 2, DIM][..], &[1, 3, DIM + 1], &[2, 3, DIM], &[3, DIM]] {
        let message = error(&with("initial_state", Tensor::zeros(DType::F32, shape).unwrap()), &plain);
        assert!(message.contains("initial_state"), "{message}");
    }
    assert!(error(&with("pos", i32s(&[1], &[0])), &plain).contains("set by the run"));
    let run = session.run(&with("labels", i32s(&[1], &[0])), &plain).unwrap();
    assert_eq!(run.ignored, ["labels"]);
}
