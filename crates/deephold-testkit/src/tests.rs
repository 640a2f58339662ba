use super::*;

#[test]
fn every_golden_folder_loads() {
    for name in GOLDEN_MODELS {
        let golden = Golden::load(name);
        let lengths: Vec<usize> = golden.prompts.iter().map(|p| p.ids.len()).collect();
        assert_eq!(lengths, [1, 7, 33, 130], "{name}");
        for p in &golden.prompts {
            assert_eq!(p.logits.len(), p.ids.len());
            assert_eq!(p.greedy.len(), 24);
            assert_eq!(p.margin.len(), 24);
            assert_eq!(argmax(p.logits.last().expect("a row")), p.greedy[0], "{name}");
        }
        assert!(golden.hidden.len() >= 3, "{name}");
    }
}

#[test]
fn what_is_written_is_read_back() {
    let dir = TempDir::new("testkit");
    let model = SyntheticModel::random_llama_256(1);
    model.write(dir.path());
    let back = SafeTensors::read(&dir.join("model.safetensors"));
    assert_eq!(back.0.len(), model.tensors.len());
    for (name, t) in &model.tensors {
        assert_eq!(back.get(name).bytes, t.bytes, "{name}");
        assert_eq!(back.get(name).shape, t.shape, "{name}");
    }
}

#[test]
fn rng_follows_from_its_seed() {
    // First value of SplitMix64 with seed 0, from its authors' reference.
    assert_eq!(Rng::new(0).next_u64(), 0xe220_a839_7b1d_cdaf);
    let mut rng = Rng::new(7);
    assert!((0..1000).all(|_| rng.below(5) < 5 && rng.uniform().abs() <= 1.0));
}

#[test]
#[should_panic(expected = "logits: [1] is 2, expected 2.5")]
fn closeness_names_the_place() {
    assert_close(&[1.0, 2.0], &[1.0, 2.5], 0.1, "logits");
}

#[test]
fn a_temporary_folder_goes() {
    let path = TempDir::new("gone").path().to_owned();
    assert!(!path.exists());
}
