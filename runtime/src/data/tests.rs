use super::*;
use rdc_ir::IGNORED_LABEL;
use std::io::Write;

fn write(dir: &Path, name: &str, bytes: &[u8]) -> PathBuf {
    let path = dir.join(name);
    std::fs::File::create(&path).unwrap().write_all(bytes).unwrap();
    path
}

fn config(text: &str) -> DataConfig {
    serde_json::from_str(text).unwrap()
}

fn row(data: &dyn Dataset, index: u64, length: usize) -> (Vec<i32>, Vec<i32>) {
    let (mut ids, mut labels) = (vec![0; length], vec![0; length]);
    data.row(index, &mut ids, &mut labels).unwrap();
    (ids, labels)
}

#[test]
fn text_predicts_its_next_byte_and_the_end_is_held_out() {
    let dir = tempfile::tempdir().unwrap();
    let text: String = (0..1000).map(|i| char::from(b'a' + (i % 26) as u8)).collect();
    write(dir.path(), "a.txt", text.as_bytes());
    let split = config(r#"{"files": ["a.txt"], "validation_fraction": 0.2}"#).open(dir.path(), 10, 0).unwrap();
    assert_eq!((split.train.rows(), split.validation.rows()), (Some(79), Some(20)));
    assert_eq!(split.train.vocabulary(), 256);
    let (ids, labels) = row(&*split.train, 3, 10);
    assert_eq!(ids, text.as_bytes()[30..40].iter().map(|&b| i32::from(b)).collect::<Vec<_>>());
    assert_eq!(labels[..9], ids[1..]);
    assert_eq!(labels[9], i32::from(text.as_bytes()[40]));
    assert_eq!(row(&*split.validation, 0, 10).0[0], i32::from(text.as_bytes()[790]));
}

#[test]
fn answers_alone_have_labels_and_bad_lines_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let good = "{\"prompt\": \"ab\", \"answer\": \"cd\"}\n{\"input\": \"xyz\", \"labels\": \"1.2\"}\n";
    write(dir.path(), "a.jsonl", format!("{good}{{\"prompt\": \"no answer\"}}\n{good}").as_bytes());
    let error = config(r#"{"files": ["a.jsonl"]}"#).open(dir.path(), 8, 0).err().unwrap().to_string();
    assert!(error.contains("a.jsonl:3:"), "{error}");
    let split = config(r#"{"files": ["a.jsonl"], "bad_lines": "skip"}"#).open(dir.path(), 8, 0).unwrap();
    assert!(split.train.describe().contains("1 bad lines left out"), "{}", split.train.describe());
    let (ids, labels) = row(&*split.train, 0, 8);
    let bytes = |s: &str| s.bytes().map(i32::from).collect::<Vec<_>>();
    assert_eq!(ids, [bytes("abcdxyz"), vec![0]].concat());
    let x = IGNORED_LABEL;
    assert_eq!(labels, [x, 99, 100, x, 49, x, 50, x]);
    let long = config(r#"{"files": ["a.jsonl"], "bad_lines": "skip"}"#).open(dir.path(), 2, 0);
    assert!(long.err().unwrap().to_string().contains("no example"));
}

#[test]
fn files_of_ids() {
    let dir = tempfile::tempdir().unwrap();
    let ids: Vec<u16> = (0..101).map(|i| i * 7 % 50).collect();
    let raw: Vec<u8> = ids.iter().flat_map(|i| i.to_le_bytes()).collect();
    write(dir.path(), "a.u16", &raw);
    let header = format!("{:<118}", "{'descr': '<u2', 'fortran_order': False, 'shape': (101,), }");
    let npy = [b"\x93NUMPY\x01\x00".as_slice(), &(118u16).to_le_bytes(), header.as_bytes(), &raw].concat();
    write(dir.path(), "a.npy", &npy);
    let wide: Vec<u8> = ids.iter().flat_map(|&i| u32::from(i).to_le_bytes()).collect();
    write(dir.path(), "a.u32", &wide);
    for name in ["a.u16", "a.npy", "a.u32"] {
        let split = config(&format!(r#"{{"files": ["{name}"]}}"#)).open(dir.path(), 20, 0).unwrap();
        assert_eq!(split.train.vocabulary(), 50, "{name}");
        let (got, labels) = row(&*split.train, 1, 20);
        assert_eq!(got, ids[20..40].iter().map(|&i| i32::from(i)).collect::<Vec<_>>());
        assert_eq!(labels[19], i32::from(ids[40]));
    }
    write(dir.path(), "b.u16", &raw[..3]);
    let odd = config(r#"{"files": ["b.u16"]}"#).open(dir.path(), 20, 0);
    assert!(odd.err().unwrap().to_string().contains("3 bytes"));
}

#[test]
fn a_tokenizer_file_is_used() {
    let dir = tempfile::tempdir().unwrap();
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/parity-raven/tokenizer.json");
    std::fs::copy(shipped, dir.path().join("tokenizer.json")).unwrap();
    let lines: String = (0..40).map(|_| "{\"prompt\": \"^01\", \"answer\": \"=1\"}\n").collect();
    write(dir.path(), "a.jsonl", lines.as_bytes());
    let split = config(r#"{"files": ["a.jsonl"], "tokenizer": "tokenizer.json"}"#).open(dir.path(), 5, 0).unwrap();
    assert_eq!(row(&*split.train, 0, 5).0, [36, 0, 1, 37, 1]);
    let bad = config(r#"{"files": ["a.jsonl"], "tokenizer": "a.jsonl"}"#).open(dir.path(), 5, 0);
    assert!(bad.err().unwrap().to_string().contains("not a tokenizer"));
}

#[test]
fn rows_of_tasks_hold_several_problems() {
    let split = config(r#"{"task": "parity", "restart": 0.0714}"#).open(Path::new("."), 24, 5).unwrap();
    let mut starts = 0;
    for index in 0..200 {
        let (ids, labels) = row(&*split.train, index, 24);
        let mut sum = 0;
        for (&id, &label) in ids.iter().zip(&labels) {
            if id == tasks::id('^') {
                (starts, sum) = (starts + 1, 0);
                assert_eq!(label, IGNORED_LABEL);
            } else {
                sum = (sum + id) % 2;
                assert_eq!(label, sum);
            }
        }
        assert_ne!(ids, row(&*split.validation, index, 24).0);
    }
    // One at the start, and each of 23 places with probability 1/14: 2.64 on average, 5 standard errors of 200 rows.
    assert!((f64::from(starts) / 200.0 - 2.64).abs() < 0.45, "{starts}");
    let split = config(r#"{"task": "add", "size": 3}"#).open(Path::new("."), 40, 5).unwrap();
    let (ids, labels) = row(&*split.train, 0, 40);
    assert!(ids.iter().filter(|&&i| i == tasks::id('+')).count() >= 2);
    assert!(labels.iter().filter(|&&l| l != IGNORED_LABEL).count() >= 4);
    for (text, part) in [
        (r#"{"task": "parity", "files": ["a"]}"#, "choose one"),
        (r#"{"task": "no"}"#, "there is no task"),
        ("{}", "neither"),
        (r#"{"task": "maze", "size": 99}"#, "go to 40"),
        (r#"{"files": ["/none/a.txt"]}"#, "/none/a.txt"),
        (r#"{"files": ["a.bin"]}"#, "say `format"),
    ] {
        let error = config(text).open(Path::new("."), 24, 5).err().unwrap().to_string();
        assert!(error.contains(part), "{text}: {error}");
    }
}

#[test]
fn batches_are_a_function_of_their_number() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "a.txt", &(0..=255u8).filter(u8::is_ascii_alphabetic).cycle().take(2001).collect::<Vec<_>>());
    let split = config(r#"{"files": ["a.txt"], "validation_fraction": 0.5}"#).open(dir.path(), 10, 0).unwrap();
    let feed = Feed::new(3, false);
    let rows = split.train.rows().unwrap();
    let mut seen: Vec<u64> = (0..rows).map(|p| feed.row_at(&*split.train, p)).collect();
    seen.sort_unstable();
    assert_eq!(seen, (0..rows).collect::<Vec<_>>());
    let batch = |number| {
        let (mut ids, mut labels) = (vec![0; 40], vec![0; 40]);
        feed.batch(&*split.train, number, 10, &mut ids, &mut labels).unwrap();
        (ids, labels)
    };
    assert_eq!(batch(7), batch(7));
    assert_eq!(batch(7).0[10..20], row(&*split.train, feed.row_at(&*split.train, 29), 10).0);
}
