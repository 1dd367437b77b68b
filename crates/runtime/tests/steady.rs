//! The run path: no allocation once shapes have been seen.

#[path = "kit/counting.rs"]
mod counting;
mod kit;

use infc_runtime::{Model, Options, Session, TensorRef};

/// One test, so that no other one allocates meanwhile.
#[test]
fn steady_runs_allocate_nothing() {
    for (program, n) in [(kit::affine(), 50usize), (kit::sum(), 64)] {
        for threads in [1, 3] {
            let model = Model::from_bytes(&kit::file(&program)).unwrap();
            let mut session = Session::new(model, Options { threads: Some(threads), spin_us: 0, profile: threads == 1 }).unwrap();
            let values = vec![1.0f32; 8 * n];
            let names: Vec<String> = session.model().inputs().iter().map(|p| p.name.clone()).collect();
            let dims = [n as i64, 8];
            let round = |session: &mut Session| {
                for (i, name) in names.iter().enumerate() {
                    let rank = session.model().inputs()[i].dims.len();
                    let values = &values[..if rank == 2 { 8 * n } else { n }];
                    session.set_input(name.as_str(), TensorRef::of(&dims[..rank], values)).unwrap();
                }
                session.run().unwrap();
                session.run().unwrap();
                assert!(session.output(0).unwrap().values::<f32>().unwrap()[0] > 0.0);
            };
            (0..3).for_each(|_| round(&mut session));
            let before = counting::calls();
            (0..20).for_each(|_| round(&mut session));
            assert_eq!(counting::calls() - before, 0, "{threads} threads");
        }
    }
}
