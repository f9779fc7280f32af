use super::*;
use crate::Error;
use crate::exec::testing::{DIM, VOCABULARY, code, meta, program};
use crate::model::Model;
use crate::weights::DrawnSource;
use proptest::prelude::*;
use rdc_ir::infer::packed_type;
use rdc_ir::{DType, Type};

/// Returns at once, on every machine that the tests run on.
const CODE_IMAGE: [u8; 8] =
    if cfg!(target_arch = "aarch64") { [0xc0, 0x03, 0x5f, 0xd6, 0, 0, 0, 0] } else { [0xc3, 0, 0, 0, 0, 0, 0, 0] };

fn test_meta() -> Meta {
    let mut meta = meta(program());
    meta.symbols = meta.program.kernels.iter().map(|k| (k.name.clone(), 0)).collect();
    meta
}

fn write_test(path: &Path, meta: &Meta, weights: bool) {
    let params = DrawnSource::new(&meta.params, 1);
    let params = weights.then_some(&params as &dyn crate::weights::ParamSource);
    let contents = Contents { meta, code: &CODE_IMAGE, ir: Some("module"), params };
    write(path, &contents, &mut |_, _| {}).unwrap();
}

fn folder() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.rda");
    (dir, path)
}

fn open_bytes(path: &Path, bytes: &[u8]) -> Result<Artifact, Error> {
    std::fs::write(path, bytes).unwrap();
    Artifact::open(path, Verify::Auto)
}

#[test]
fn round_trip() {
    let (dir, path) = folder();
    let meta = test_meta();
    write_test(&path, &meta, true);
    let artifact = Artifact::open(&path, Verify::All).unwrap();
    assert_eq!(artifact.meta(), &meta);
    assert_eq!((artifact.ir(), artifact.section(CODE)), (Some("module"), Some(&CODE_IMAGE[..])));
    assert!(artifact.sections().iter().all(|s| s.offset % SECTION_ALIGN == 0));
    artifact.verify().unwrap();
    let model = Model::load(&artifact, 99).unwrap();
    assert_eq!(model.weight(0).as_ptr() as usize % WEIGHT_ALIGN, 0);
    let drawn = Model::from_parts(meta.clone(), code(), &DrawnSource::new(&meta.params, 1)).unwrap();
    assert_eq!(model.weight(0), drawn.weight(0));
    // Nothing is left behind, and equal contents are equal bytes.
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    let bytes = std::fs::read(&path).unwrap();
    write_test(&path, &meta, true);
    assert_eq!(std::fs::read(&path).unwrap(), bytes);
    // The mapping of the replaced file is still whole.
    artifact.verify().unwrap();
}

#[test]
fn without_weights_they_are_drawn_under_the_seed() {
    let (_dir, path) = folder();
    let meta = test_meta();
    write_test(&path, &meta, false);
    let artifact = Artifact::open(&path, Verify::Auto).unwrap();
    assert!(!artifact.has_weights() && artifact.weights().is_none());
    let load = |seed| Model::load(&artifact, seed).unwrap().weight(0).to_vec();
    let drawn = Model::from_parts(meta.clone(), code(), &DrawnSource::new(&meta.params, 1)).unwrap();
    assert_eq!(load(1), drawn.weight(0));
    assert_ne!(load(2), drawn.weight(0));
}

#[test]
fn truncation_is_named() {
    let (_dir, path) = folder();
    write_test(&path, &test_meta(), true);
    let bytes = std::fs::read(&path).unwrap();
    let sections = Artifact::open(&path, Verify::Auto).unwrap().sections().to_vec();
    let around = |at: u64| [at.saturating_sub(1), at, at + 1];
    let mut cuts: Vec<u64> =
        (0..256).chain(sections.iter().flat_map(|s| [around(s.offset), around(s.offset + s.size)].concat())).collect();
    cuts.retain(|&c| c < bytes.len() as u64);
    for cut in cuts {
        let message = open_bytes(&path, &bytes[..cut as usize]).unwrap_err().to_string();
        let expected = if cut < HEADER as u64 { "not an artifact" } else { "truncated" };
        assert!(message.contains(expected) && message.contains("m.rda"), "{cut}: {message}");
    }
    let longer = [&bytes[..], &[0]].concat();
    assert!(open_bytes(&path, &longer).is_err());
}

#[test]
fn every_flipped_byte_is_found() {
    let (_dir, path) = folder();
    write_test(&path, &test_meta(), true);
    let mut bytes = std::fs::read(&path).unwrap();
    let sections = Artifact::open(&path, Verify::Auto).unwrap().sections().to_vec();
    // All of the header; of the rest, padding included, every 977th byte and the ends of the sections.
    let mut places: Vec<usize> = (0..256).chain((256..bytes.len()).step_by(977)).collect();
    places.extend(sections.iter().flat_map(|s| [s.offset as usize, (s.offset + s.size) as usize - 1]));
    for at in places {
        bytes[at] ^= 0x40;
        let message = open_bytes(&path, &bytes).unwrap_err().to_string();
        bytes[at] ^= 0x40;
        if let Some(section) = sections.iter().find(|s| (s.offset..s.offset + s.size).contains(&(at as u64))) {
            assert!(message.contains(&format!("section `{}` is damaged", section.name)), "{at}: {message}");
        }
    }
    // A fast open leaves the weights to `verify`.
    let weights = sections.iter().find(|s| s.name == WEIGHTS).unwrap();
    bytes[weights.offset as usize] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    let message = Artifact::open(&path, Verify::Fast).unwrap().verify().unwrap_err().to_string();
    assert!(message.contains("section `weights` is damaged"), "{message}");
}

/// Metadata with a weight of every kind; the program has a cache already.
fn meta_of_all_weights() -> Meta {
    use rdc_ir::program::{Piece, Weight, WeightSource};
    let mut meta = test_meta();
    let piece = |rows| Piece { param: "table".into(), rows, cols: (0, DIM) };
    let pieces = vec![piece((0, 5)), piece((5, VOCABULARY))];
    let sources = [
        (Type::f32([VOCABULARY, DIM]), WeightSource::Param { name: "table".into(), via_bf16: true }),
        (
            packed_type(DType::I8, VOCABULARY, DIM, 8),
            WeightSource::Packed { pieces: pieces.clone(), n: VOCABULARY, k: DIM, nr: 8, parts: 1 },
        ),
        (Type::f32([VOCABULARY]), WeightSource::Scales { pieces }),
        (Type::f32([9, 4, 2]), WeightSource::RopeTable { len: 9, dim: 8, base: 10000.0 }),
        (Type::f32([9, 8]), WeightSource::SinusoidTable { len: 9, dim: 8, base: 10000.0 }),
    ];
    let weights = sources.into_iter().map(|(ty, source)| Weight { name: "w".into(), ty, source });
    meta.program.weights.extend(weights);
    meta
}

/// What `rdc inspect` and `rdc run` do with an artifact before a kernel runs. Drawn weights are kept small by the check here, not
/// by the format.
fn use_artifact(artifact: &Artifact) {
    let meta = artifact.meta();
    let _ =
        (meta.kv.slots(meta.max_steps, 4), meta.kv.slot(meta.max_steps, 3, 4), meta.kv.slots(usize::MAX, usize::MAX));
    let small = weight_layout(&meta.program).is_some_and(|layout| layout.total < 1 << 24);
    if small && let Ok(model) = Model::load(artifact, 0) {
        let _ = crate::Session::new(std::sync::Arc::new(model), 1);
    }
}

#[test]
fn every_kind_of_weight_is_made() {
    let (_dir, path) = folder();
    let meta = meta_of_all_weights();
    write_test(&path, &meta, true);
    let artifact = Artifact::open(&path, Verify::All).unwrap();
    let model = Model::load(&artifact, 0).unwrap();
    for (index, weight) in meta.program.weights.iter().enumerate() {
        assert!(model.weight(index).iter().any(|&b| b != 0), "{:?}", weight.source);
    }
    use_artifact(&artifact);
}

#[test]
fn lies_about_weights_and_policies_are_refused() {
    use rdc_ir::program::{KvPolicy, WeightSource};
    let (_dir, path) = folder();
    let lies: [fn(&mut Meta); 6] = [
        |m| m.kv = KvPolicy::Block(0),
        |m| m.kv = KvPolicy::Modulo(0),
        |m| m.params[0].ty = Type::f32([1, DIM]),
        |m| m.params[0].ty = Type::f32([1, usize::MAX]),
        |m| m.program.weights[4].source = WeightSource::RopeTable { len: 1 << 61, dim: 8, base: 10000.0 },
        |m| m.program.weights[5].source = WeightSource::SinusoidTable { len: 1 << 61, dim: 8, base: 10000.0 },
    ];
    for (index, lie) in lies.into_iter().enumerate() {
        let mut meta = meta_of_all_weights();
        lie(&mut meta);
        let json = serde_json::to_vec(&meta).unwrap();
        let opened = open_bytes(&path, &assemble(&[(META, &json), (CODE, &CODE_IMAGE)]));
        assert!(opened.is_err(), "lie {index}");
        let params = DrawnSource::new(&meta.params, 1);
        assert!(Model::from_parts(meta, code(), &params).is_err(), "lie {index}");
    }
}

/// Puts sections together as the writer does.
fn assemble(parts: &[(&str, &[u8])]) -> Vec<u8> {
    let mut bytes = vec![0; HEADER + parts.len() * TABLE_ENTRY];
    let mut sections = Vec::new();
    for (name, content) in parts {
        let offset = (bytes.len() as u64).next_multiple_of(SECTION_ALIGN);
        bytes.resize(offset as usize, 0);
        bytes.extend_from_slice(content);
        let (size, crc) = (content.len() as u64, crc32fast::hash(content));
        sections.push(Section { name: (*name).into(), offset, size, crc });
    }
    let header = encode_header(&sections, bytes.len() as u64);
    bytes[..header.len()].copy_from_slice(&header);
    bytes
}

#[test]
fn another_format_says_so() {
    let (_dir, path) = folder();
    write_test(&path, &test_meta(), false);
    let mut bytes = std::fs::read(&path).unwrap();
    for (version, what) in [(VERSION + 1, "newer"), (1, "older")] {
        bytes[8..12].copy_from_slice(&version.to_le_bytes());
        let message = open_bytes(&path, &bytes).unwrap_err().to_string();
        assert!(message.contains(&format!("version {version}, {what}")), "{message}");
    }
}

/// The fixture is a whole artifact, as it was written before there were barriers and pairs in schedules.
#[test]
fn an_older_format_says_so() {
    let (_dir, path) = folder();
    let message = open_bytes(&path, include_bytes!("testdata/format-1.bin")).unwrap_err().to_string();
    assert!(message.contains("version 1, older") && message.contains("compile the model again"), "{message}");
}

#[test]
fn another_cpu_says_so_when_code_is_loaded() {
    let (_dir, path) = folder();
    let mut meta = test_meta();
    let refused = |change: fn(&mut Meta), expected: &str| {
        let mut meta = meta.clone();
        change(&mut meta);
        write_test(&path, &meta, false);
        // Inspecting is possible on any machine.
        let artifact = Artifact::open(&path, Verify::Auto).unwrap();
        let message = artifact.load_code().unwrap_err().to_string();
        assert!(message.contains(expected) && message.contains("m.rda"), "{message}");
    };
    refused(|m| m.isa.requires = vec!["warp-drive".into()], "warp-drive");
    refused(|m| m.isa.architecture = "riscv64".into(), "compiled for riscv64");
    meta.symbols.clear();
    write_test(&path, &meta, false);
    let artifact = Artifact::open(&path, Verify::Auto).unwrap();
    assert!(Model::load(&artifact, 0).unwrap_err().to_string().contains("lacks the kernel"));
}

#[test]
fn missing_or_misshapen_sections() {
    let (_dir, path) = folder();
    let json = serde_json::to_vec(&test_meta()).unwrap();
    let message = |parts: &[(&str, &[u8])]| open_bytes(&path, &assemble(parts)).map(|_| ()).map_err(|e| e.to_string());
    assert!(message(&[(META, &json), (CODE, &CODE_IMAGE)]).is_ok());
    assert!(message(&[(META, &json)]).unwrap_err().contains("no section `code`"));
    assert!(message(&[(CODE, &[0])]).unwrap_err().contains("no section `meta`"));
    assert!(message(&[(META, b"{}"), (CODE, &[0])]).unwrap_err().contains("not readable metadata"));
    assert!(
        message(&[(META, &json), (CODE, &[0]), (WEIGHTS, &[0; 9])])
            .unwrap_err()
            .contains("size of the program's weights")
    );
    assert!(message(&[(META, &json), (META, &json), (CODE, &[0])]).unwrap_err().contains("out of place"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600), magic in any::<bool>()) {
        let (_dir, path) = folder();
        let mut bytes = bytes;
        if magic && bytes.len() >= 12 {
            bytes[..8].copy_from_slice(&MAGIC);
            bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
        }
        prop_assert!(open_bytes(&path, &bytes).is_err());
    }

    /// Lies in the table under a right checksum: sizes and places are still checked before anything is read.
    #[test]
    fn lying_tables_never_panic(at in 12usize..112, value in any::<u64>(), width in 1usize..9) {
        let (_dir, path) = folder();
        let json = serde_json::to_vec(&test_meta()).unwrap();
        let mut bytes = assemble(&[(META, &json), (CODE, &CODE_IMAGE)]);
        bytes[at..at + width].copy_from_slice(&value.to_le_bytes()[..width]);
        bytes[28..32].fill(0);
        let crc = crc32fast::hash(&bytes[..HEADER + 2 * TABLE_ENTRY]);
        bytes[28..32].copy_from_slice(&crc.to_le_bytes());
        let _ = open_bytes(&path, &bytes);
    }

    /// Numbers of the metadata replaced by others, under right checksums.
    #[test]
    fn lying_metadata_never_panics(pick in any::<prop::sample::Index>(), value in prop_oneof![any::<u64>(), 0u64..100]) {
        let (_dir, path) = folder();
        let json = serde_json::to_string(&meta_of_all_weights()).unwrap();
        let starts: Vec<usize> = json.char_indices().filter(|(i, c)| c.is_ascii_digit() && !json.as_bytes()[i - 1].is_ascii_digit()).map(|(i, _)| i).collect();
        let at = starts[pick.index(starts.len())];
        let end = at + json[at..].find(|c: char| !c.is_ascii_digit()).unwrap_or(1);
        let changed = format!("{}{value}{}", &json[..at], &json[end..]);
        if let Ok(artifact) = open_bytes(&path, &assemble(&[(META, changed.as_bytes()), (CODE, &CODE_IMAGE)])) {
            use_artifact(&artifact);
        }
    }
}

#[test]
fn features_by_name() {
    let mut isa = test_meta().isa;
    assert!(crate::model::check_isa(&isa, "native").is_ok());
    isa.requires = vec!["no-such-feature".into()];
    assert!(crate::model::check_isa(&isa, "native").unwrap_err().contains("no-such-feature"));
}
