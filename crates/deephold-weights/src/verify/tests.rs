use std::collections::BTreeMap;
use std::path::Path;

use deephold_quant::DType;
use deephold_testkit::{TempDir, golden_dir};

use super::*;
use crate::safetensors::{self, OwnedTensor};

fn all(checkpoint: &Checkpoint) -> Vec<ExpectedTensor> {
    let expected = |t: &TensorInfo| ExpectedTensor {
        name: t.name.clone(),
        shape: t.shape.clone(),
        optional: false,
        active_share: (1, 1),
    };
    checkpoint.tensors().map(expected).collect()
}

fn run(checkpoint: &Checkpoint, expected: Option<&[ExpectedTensor]>) -> VerifyReport {
    let options = VerifyOptions { threads: 3, ..VerifyOptions::default() };
    check(checkpoint, expected, options, &mut |_| ControlFlow::Continue(())).expect("a report")
}

fn write(dir: &Path, values: &[f32]) -> Checkpoint {
    std::fs::write(dir.join("config.json"), "{}").expect("write");
    let data = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    let tensor = OwnedTensor { name: "x".into(), dtype: DType::F32, shape: vec![values.len()], data };
    safetensors::write(&dir.join("model.safetensors"), &[tensor], &BTreeMap::new()).expect("write");
    Checkpoint::open(dir).expect("a model")
}

#[test]
fn golden_is_sound() {
    let c = Checkpoint::open(&golden_dir("v3")).expect("v3");
    let expected = all(&c);
    let mut last = None;
    let options = VerifyOptions { threads: 2, ..VerifyOptions::default() };
    let report = check(&c, Some(&expected), options, &mut |p| {
        last = Some(p);
        ControlFlow::Continue(())
    })
    .expect("a report");
    assert_eq!(report.problems, []);
    assert!(report.is_sound() && !report.manifest);
    assert_eq!(report.tensors, expected.len());
    let last = last.expect("progress");
    assert_eq!((last.stage, last.done_bytes), (Stage::Digests, last.total_bytes));
    let json = serde_json::to_value(&report).expect("JSON");
    assert_eq!(json["files"][0]["path"], "config.json");
}

#[test]
fn tensors_are_held_against_the_configuration() {
    let c = Checkpoint::open(&golden_dir("v3")).expect("v3");
    let mut expected = all(&c);
    let surplus = expected.remove(0).name;
    expected[0].shape.push(7);
    let wrong = expected[0].name.clone();
    expected.push(ExpectedTensor {
        name: "gone".into(),
        shape: vec![1],
        optional: false,
        active_share: (1, 1),
    });
    expected.push(ExpectedTensor {
        name: "never".into(),
        shape: vec![1],
        optional: true,
        active_share: (1, 1),
    });
    let found: Vec<_> =
        compare(&c, &expected, None).into_iter().map(|p| (p.kind, p.place, p.harmless)).collect();
    let wanted = [
        (FindingKind::Shape, wrong, false),
        (FindingKind::Missing, "gone".to_owned(), false),
        (FindingKind::Surplus, surplus, true),
    ];
    assert_eq!(found, wanted);
}

#[test]
fn values_that_are_not_finite_are_placed() {
    let dir = TempDir::new("finite");
    let mut values = vec![0.5; CHUNK_ELEMENTS * 2 + 9];
    values[CHUNK_ELEMENTS + 3] = f32::NAN;
    values[CHUNK_ELEMENTS * 2 + 3] = f32::INFINITY;
    let report = run(&write(dir.path(), &values), None);
    assert_eq!(report.problems.len(), 1);
    assert!(report.problems[0].what.contains(&(CHUNK_ELEMENTS + 3).to_string()), "{:?}", report.problems);
    assert!(!report.is_sound());
}

#[test]
fn manifests_notice_changes() {
    let dir = TempDir::new("manifest");
    let c = write(dir.path(), &[1.0, 2.0]);
    let report = run(&c, None);
    let path = write_manifest(&c, &report).expect("written");
    assert_eq!(path.file_name().and_then(|n| n.to_str()), Some("deephold-manifest.json"));
    let again = run(&c, None);
    assert!(again.manifest && again.problems.is_empty(), "{:?}", again.problems);

    let c = write(dir.path(), &[1.0, 3.0]);
    let report = run(&c, None);
    assert_eq!(report.problems.len(), 1);
    assert_eq!(
        (report.problems[0].kind, report.problems[0].place.as_str()),
        (FindingKind::Digest, "model.safetensors")
    );

    std::fs::write(dir.join("tokenizer.json"), "{}").expect("write");
    assert_eq!(run(&c, None).problems.len(), 2);
    let outside = r#"{"version":1,"files":[{"path":"../x","bytes":1,"sha256":""}]}"#;
    std::fs::write(&path, outside).expect("write");
    assert!(read_manifest(&path).is_err());
}

#[test]
fn known_digest() {
    let dir = TempDir::new("digest");
    let c = write(dir.path(), &[]);
    let report = run(&c, None);
    let config = report.files.iter().find(|f| f.path == "config.json").expect("config.json");
    // printf '{}' | sha256sum
    let expected = "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a";
    assert_eq!(config.sha256.as_deref(), Some(expected));
}

#[test]
fn the_caller_may_stop() {
    let c = Checkpoint::open(&golden_dir("v3")).expect("v3");
    let stopped = check(&c, None, VerifyOptions::default(), &mut |_| ControlFlow::Break(()));
    assert!(matches!(stopped, Err(WeightsError::Cancelled)));
}
