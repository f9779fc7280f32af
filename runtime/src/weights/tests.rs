use super::*;
use crate::artifact::ParamInfo;
use crate::checkpoint::Checkpoint;
use rdc_ir::packing::{Packing, quantize, row_scale};
use rdc_ir::{DType, Init, Type};
use std::collections::BTreeMap;

/// Parameters in memory.
struct Params(BTreeMap<&'static str, (usize, Vec<f32>)>);

impl ParamSource for Params {
    fn columns(&self, name: &str) -> Result<usize, Error> {
        self.0.get(name).map(|p| p.0).ok_or_else(|| Error::Program(format!("no {name}")))
    }
    fn read(&self, name: &str, start: usize, out: &mut [f32]) -> Result<(), Error> {
        self.columns(name)?;
        out.copy_from_slice(&self.0[name].1[start..start + out.len()]);
        Ok(())
    }
}

fn values(rows: usize, columns: usize, phase: f32) -> (usize, Vec<f32>) {
    (columns, (0..rows * columns).map(|i| (i as f32 * 0.7 + phase).sin()).collect())
}

fn params() -> Params {
    Params([("a", values(40, 7, 0.0)), ("b", values(24, 5, 1.0)), ("v", values(1, 33, 2.0))].into())
}

fn piece(param: &str, rows: (usize, usize), cols: (usize, usize)) -> Piece {
    Piece { param: param.into(), rows, cols }
}

fn make(ty: Type, source: WeightSource) -> Result<Vec<u8>, Error> {
    let weight = Weight { name: "w".into(), ty, source };
    let mut bytes = vec![0xee; weight.ty.bytes()];
    fill(&weight, &params(), &mut bytes).map(|()| bytes)
}

#[test]
fn panels_of_stacked_pieces() {
    // Rows 8..40 of `a`, columns 1..6, over all of `b`: 56 rows of 5 columns.
    let pieces = vec![piece("a", (8, 40), (1, 6)), piece("b", (0, 24), (0, 5))];
    let params = params();
    let row = |r: usize| {
        let (param, r, cols) = if r < 32 { ("a", r + 8, 1..6) } else { ("b", r - 32, 0..5) };
        let (columns, data) = &params.0[param];
        let whole = &data[r * columns..][..*columns];
        (whole[cols].to_vec(), row_scale(whole))
    };
    for (dtype, nr, parts) in [
        (DType::F32, 16, 1),
        (DType::BF16, 16, 1),
        (DType::I8, 16, 1),
        (DType::F32, 8, 2),
        (DType::BF16, 8, 2),
        (DType::I8, 4, 4),
    ] {
        let packing = Packing::new(dtype, 56, 5, nr, parts);
        let ty = Type::new(dtype, [packing.panels(), 5usize.div_ceil(packing.kp), nr, packing.kp]);
        let source = WeightSource::Packed { pieces: pieces.clone(), n: 56, k: 5, nr, parts };
        let bytes = make(ty.clone(), source.clone()).unwrap();
        let mut expected = vec![0u8; ty.bytes()];
        for r in 0..56 {
            let (values, scale) = row(r);
            for (k, v) in values.into_iter().enumerate() {
                let size = dtype.bytes();
                let out = &mut expected[packing.place(r, k) * size..][..size];
                match dtype {
                    DType::F32 => out.copy_from_slice(&v.to_le_bytes()),
                    DType::BF16 => out.copy_from_slice(&bf16::from_f32(v).to_le_bytes()),
                    _ => out.copy_from_slice(&quantize(v, scale).to_le_bytes()),
                }
            }
        }
        assert!(bytes == expected, "{dtype:?} {nr} {parts}");
        // Another type than the recipe gives.
        assert!(make(Type::f32([1, 2, 3, 4]), source).is_err());
    }
    let scales = make(Type::f32([56]), WeightSource::Scales { pieces: pieces.clone() }).unwrap();
    let expected: Vec<f32> = (0..56).map(|r| row(r).1).collect();
    assert_eq!(bytemuck::cast_slice::<u8, f32>(&scales), expected);
    assert!(make(Type::f32([55]), WeightSource::Scales { pieces }).is_err());
}

#[test]
fn parameters_and_tables() {
    let param = |via_bf16| WeightSource::Param { name: "v".into(), via_bf16 };
    let plain = make(Type::f32([33]), param(false)).unwrap();
    assert_eq!(bytemuck::cast_slice::<u8, f32>(&plain), params().0["v"].1);
    let rounded = make(Type::f32([33]), param(true)).unwrap();
    let expected: Vec<f32> = params().0["v"].1.iter().map(|x| bf16::from_f32(*x).to_f32()).collect();
    assert_eq!(bytemuck::cast_slice::<u8, f32>(&rounded), expected);
    let table = make(Type::f32([9, 4, 2]), WeightSource::RopeTable { len: 9, dim: 8, base: 100.0 }).unwrap();
    assert_eq!(bytemuck::cast_slice::<u8, f32>(&table), rdc_ir::tables::rope_table(9, 8, 100.0));
    let table = make(Type::f32([9, 8]), WeightSource::SinusoidTable { len: 9, dim: 8, base: 100.0 }).unwrap();
    assert_eq!(bytemuck::cast_slice::<u8, f32>(&table), rdc_ir::tables::sinusoid_table(9, 8, 100.0));
    let absent = WeightSource::Param { name: "absent".into(), via_bf16: false };
    assert!(make(Type::f32([3]), absent).is_err());
    let short = WeightSource::RopeTable { len: 8, dim: 8, base: 100.0 };
    assert!(make(Type::f32([9, 4, 2]), short).is_err());
}

fn info(shape: &[usize]) -> ParamInfo {
    let init = Init::Normal { std: 1.0 };
    ParamInfo {
        name: "big".into(),
        aliases: Vec::new(),
        ty: Type::f32(shape),
        init,
        in_stack: false,
        decay: true,
        state: false,
    }
}

/// Large enough for several batches and threads; compared with its rows drawn one by one.
#[test]
fn batches_and_threads_change_nothing() {
    let (n, k, nr) = (3000, 1100, 16);
    let params = DrawnSource::new(&[info(&[n, k])], 4);
    let packing = Packing::new(DType::F32, n, k, nr, 1);
    let ty = Type::f32([packing.panels(), k, nr, 1]);
    let source = WeightSource::Packed { pieces: vec![piece("big", (0, n), (0, k))], n, k, nr, parts: 1 };
    let weight = Weight { name: "w".into(), ty, source };
    let (mut bytes, mut batches) = (Vec::new(), 0);
    produce(&weight, &params, &mut |b| {
        batches += 1;
        bytes.extend_from_slice(b);
        Ok(())
    })
    .unwrap();
    assert!(batches > 1 && bytes.len() == weight.ty.bytes());
    let packed: &[f32] = bytemuck::cast_slice(&bytes);
    let mut row = vec![0.0; k];
    for r in (0..n).step_by(97).chain([n - 1]) {
        params.read("big", r * k, &mut row).unwrap();
        assert!(row.iter().enumerate().all(|(c, x)| packed[packing.place(r, c)] == *x), "row {r}");
    }
    assert!(packed[packing.place(n - 1, 0) + 1..][..8].iter().all(|x| *x == 0.0), "padding");
}

#[test]
fn draws_and_checkpoints_are_read_alike() {
    let params = DrawnSource::new(&[info(&[6, 10])], 4);
    let mut all = vec![0.0; 60];
    params.read("big", 0, &mut all).unwrap();
    let mut part = vec![0.0; 17];
    params.read("big", 28, &mut part).unwrap();
    assert_eq!(part, all[28..45]);
    assert!(params.read("big", 44, &mut part).is_err() && params.columns("other").is_err());

    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.safetensors");
    let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, vec![6, 10], bytemuck::cast_slice(&all));
    safetensors::serialize_to_file([("stored", view.unwrap())], None, &path).unwrap();
    let checkpoint = Checkpoint::open(&path).unwrap();
    let source = CheckpointSource::new(&checkpoint, [("big".to_string(), "stored".to_string())].into());
    assert_eq!(source.columns("big").unwrap(), 10);
    source.read("big", 28, &mut part).unwrap();
    assert_eq!(part, all[28..45]);
    assert!(source.read("absent", 0, &mut part).unwrap_err().to_string().contains("no tensor named absent"));
}
