//! The run path: no allocation once shapes have been seen.

mod kit;

use infc_runtime::{Model, Options, Session, TensorRef};
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

/// The system's allocator, counting calls of all threads.
struct Counting;
static CALLS: AtomicUsize = AtomicUsize::new(0);

// Safety: hands everything to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        CALLS.fetch_add(1, SeqCst);
        // Safety: by the caller.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // Safety: by the caller.
        unsafe { System.dealloc(pointer, layout) }
    }
    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        CALLS.fetch_add(1, SeqCst);
        // Safety: by the caller.
        unsafe { System.realloc(pointer, layout, size) }
    }
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        CALLS.fetch_add(1, SeqCst);
        // Safety: by the caller.
        unsafe { System.alloc_zeroed(layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

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
            let before = CALLS.load(SeqCst);
            (0..20).for_each(|_| round(&mut session));
            assert_eq!(CALLS.load(SeqCst) - before, 0, "{threads} threads");
        }
    }
}
