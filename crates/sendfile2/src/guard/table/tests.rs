use super::*;

/// A key that no other lease has.
fn fresh() -> u64 {
    static NEXT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
    NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed)
}

#[cfg(not(loom))]
mod behaviour {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
    use std::task::Wake as StdWake;

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl StdWake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, SeqCst);
        }
    }

    fn waker() -> (Arc<Count>, Option<Waker>) {
        let count = Arc::new(Count::default());
        (Arc::clone(&count), Some(Waker::from(count)))
    }

    type Ranges = [Range<u64>; 1];

    fn lease(table: &Table<()>, range: Range<u64>) -> Option<(u64, Ranges)> {
        let (key, ranges) = (fresh(), [range]);
        table.try_lease(&ranges, key, &()).then_some((key, ranges))
    }

    fn end(table: &Table<()>, (key, ranges): &(u64, Ranges)) {
        table.end_lease(ranges, *key).wake();
    }

    #[test]
    fn leases_overlap_and_the_writer_waits_for_all_of_them() {
        let table = Table::new();
        let a = lease(&table, 0..10).unwrap();
        let b = lease(&table, 5..15).unwrap();
        let (woken, waker) = waker();
        let writer = table.queue_writer(9..12, waker);
        assert!(!table.is_active(writer));
        end(&table, &a);
        assert!(!table.is_active(writer));
        assert_eq!(woken.0.load(SeqCst), 0);
        end(&table, &b);
        assert!(table.is_active(writer));
        assert_eq!(woken.0.load(SeqCst), 1);
    }

    #[test]
    fn nothing_is_granted_past_a_queued_writer() {
        let table = Table::new();
        let first = lease(&table, 0..10).unwrap();
        let writer = table.queue_writer(5..20, None);
        assert!(lease(&table, 19..21).is_none());
        let beside = lease(&table, 20..30);
        assert!(beside.is_some(), "no byte in common");
        end(&table, &first);
        assert!(table.is_active(writer));
        assert!(lease(&table, 5..6).is_none());
        table.remove_writer(writer).wake();
        assert!(lease(&table, 5..6).is_some());
    }

    #[test]
    fn writers_go_in_the_order_of_queueing() {
        let table: Table<()> = Table::new();
        let a = table.queue_writer(0..10, None);
        let (woken, waker) = waker();
        let b = table.queue_writer(5..15, waker);
        let c = table.queue_writer(20..30, None);
        assert!(table.is_active(a) && !table.is_active(b) && table.is_active(c));
        table.remove_writer(a).wake();
        assert!(table.is_active(b));
        assert_eq!(woken.0.load(SeqCst), 1);
    }

    #[test]
    fn a_writer_that_gives_up_lets_the_next_one_and_the_lessees_on() {
        let table = Table::new();
        let lease_a = lease(&table, 0..10).unwrap();
        let a = table.queue_writer(0..20, None);
        let b = table.queue_writer(15..30, None);
        let (woken, waker) = waker();
        table.add_lessee(waker.unwrap());
        assert!(!table.is_active(b));
        table.remove_writer(a).wake();
        assert!(table.is_active(b));
        assert_eq!(woken.0.load(SeqCst), 1);
        assert!(lease(&table, 0..5).is_some());
        end(&table, &lease_a);
    }

    #[test]
    fn several_ranges_are_one_lease() {
        let table = Table::new();
        let ranges = [0..10, 100..110];
        assert!(table.try_lease(&ranges, 1, &()));
        let writer = table.queue_writer(5..105, None);
        assert!(!table.is_active(writer));
        let refused = [200..210, 104..106];
        assert!(!table.try_lease(&refused, 2, &()));
        table.end_lease(&refused, 2).wake();
        assert_eq!(table.leases().len(), 2, "a refused lease left a range behind");
        table.end_lease(&ranges, 1).wake();
        assert!(table.is_active(writer));
    }

    #[test]
    fn try_writer_leaves_nothing_behind() {
        let table = Table::new();
        let held = lease(&table, 0..10).unwrap();
        assert_eq!(table.try_writer(&(9..11)), Err(vec![()]));
        assert_eq!(table.writers(), 0);
        assert!(lease(&table, 10..11).is_some());
        end(&table, &held);
    }
}

#[cfg(not(loom))]
mod properties {
    use super::*;
    use proptest::prelude::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
    use std::task::Wake as StdWake;

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl StdWake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, SeqCst);
        }
    }

    #[derive(Debug, Clone)]
    enum Op {
        Lease(Range<u64>),
        End(usize),
        Queue(Range<u64>),
        Try(Range<u64>),
        Remove(usize),
        Detach(usize),
        Expose(Range<u64>),
    }

    fn op() -> impl Strategy<Value = Op> {
        let range = || (0..30u64, 1..10u64).prop_map(|(start, len)| start..start + len);
        prop_oneof![
            range().prop_map(Op::Lease),
            (0..6usize).prop_map(Op::End),
            range().prop_map(Op::Queue),
            range().prop_map(Op::Try),
            (0..6usize).prop_map(Op::Remove),
            (0..6usize).prop_map(Op::Detach),
            range().prop_map(Op::Expose),
        ]
    }

    fn index(at: u64) -> usize {
        usize::try_from(at).unwrap()
    }

    /// Its bytes that are not in `other`.
    fn without(range: &Range<u64>, other: &Range<u64>) -> Vec<Range<u64>> {
        let rests =
            [range.start..range.end.min(other.start), range.start.max(other.end)..range.end];
        rests.into_iter().filter(|rest| !rest.is_empty()).collect()
    }

    /// A writer as the naive model knows it.
    struct Known {
        key: u64,
        range: Range<u64>,
        was_active: bool,
        woken: Arc<Count>,
    }

    proptest! {
        /// After each step the table says of every writer, polled in any order, what two plain
        /// lists say, and whoever became active meanwhile has been woken, once.
        #[test]
        fn like_two_lists(ops in prop::collection::vec(op(), 1..60)) {
            let table: Table<u64> = Table::new();
            let mut leases: Vec<(u64, [Range<u64>; 1])> = Vec::new();
            // What is left of them, as pieces.
            let mut left: Vec<(u64, Range<u64>)> = Vec::new();
            let mut exposed = [false; 64];
            let mut writers: Vec<Known> = Vec::new();
            for op in ops {
                match op {
                    Op::Lease(range) => {
                        let free = !writers.iter().any(|w| overlap(&w.range, &range));
                        let (key, ranges) = (fresh(), [range]);
                        prop_assert_eq!(table.try_lease(&ranges, key, &key), free);
                        if free {
                            left.push((key, ranges[0].clone()));
                            leases.push((key, ranges));
                        }
                    }
                    Op::End(i) if i < leases.len() => {
                        let (key, ranges) = leases.remove(i);
                        table.end_lease(&ranges, key).wake();
                        left.retain(|(of, _)| *of != key);
                    }
                    Op::Queue(range) => {
                        let woken = Arc::<Count>::default();
                        let waker = Waker::from(Arc::clone(&woken));
                        let key = table.queue_writer(range.clone(), Some(waker));
                        let was_active = table.is_active(key);
                        writers.push(Known { key, range, was_active, woken });
                    }
                    Op::Try(range) => {
                        let free = !left.iter().any(|(_, l)| overlap(l, &range))
                            && !writers.iter().any(|w| overlap(&w.range, &range));
                        let tried = table.try_writer(&range);
                        prop_assert_eq!(tried.is_ok(), free);
                        if let Ok(key) = tried {
                            let woken = Arc::default();
                            writers.push(Known { key, range, was_active: true, woken });
                        }
                    }
                    Op::Remove(i) if i < writers.len() => {
                        // Active or not: who gives up goes the same way.
                        table.remove_writer(writers.remove(i).key).wake();
                    }
                    Op::Detach(i) if i < writers.len() => {
                        let Known { key, range, .. } = &writers[i];
                        table.detached(*key, range).wake();
                        if !writers[..i].iter().any(|w| overlap(&w.range, range)) {
                            left = left
                                .iter()
                                .flat_map(|(key, piece)| {
                                    without(piece, range).into_iter().map(|rest| (*key, rest))
                                })
                                .collect();
                            range.clone().for_each(|at| exposed[index(at)] = false);
                        }
                    }
                    Op::Expose(range) => {
                        table.expose(&range);
                        range.for_each(|at| exposed[index(at)] = true);
                    }
                    Op::End(_) | Op::Remove(_) | Op::Detach(_) => {}
                }
                for (i, writer) in writers.iter().enumerate() {
                    let mut in_the_way: Vec<u64> = left
                        .iter()
                        .filter(|(_, l)| overlap(l, &writer.range))
                        .map(|(key, _)| *key)
                        .collect();
                    let earlier = writers[..i].iter().any(|w| overlap(&w.range, &writer.range));
                    let active = in_the_way.is_empty() && !earlier;
                    prop_assert_eq!(table.is_active(writer.key), active);
                    let any = writer.range.clone().any(|at| exposed[index(at)]);
                    prop_assert_eq!(table.is_exposed(&writer.range), any);
                    let (mut told, told_earlier) = table.blockers(writer.key);
                    told.sort_unstable();
                    in_the_way.sort_unstable();
                    prop_assert_eq!((told, told_earlier), (in_the_way, earlier));
                    let woken = usize::from(active && !writer.was_active);
                    prop_assert_eq!(writer.woken.0.load(SeqCst), woken, "{}", i);
                }
                prop_assert_eq!(table.writers(), writers.len());
            }
        }
    }
}

/// `RUSTFLAGS="--cfg loom" cargo test --release -p sendfile2 --lib guard::table`: all
/// interleavings of these threads with up to three preemptions. A lost wake-up shows as a
/// deadlock.
#[cfg(loom)]
mod model {
    use super::*;
    use loom::sync::{Arc, Condvar};
    use loom::thread;
    use std::task::Wake as StdWake;

    fn check(model: impl Fn() + Send + Sync + 'static) {
        let mut builder = loom::model::Builder::new();
        builder.preemption_bound = Some(3);
        builder.check(model);
    }

    /// A parked thread, as the parker's bell is.
    struct Bell(Mutex<bool>, Condvar);

    impl StdWake for Bell {
        fn wake(self: std::sync::Arc<Self>) {
            *self.0.lock().unwrap() = true;
            self.1.notify_one();
        }
    }

    impl Bell {
        fn new() -> std::sync::Arc<Self> {
            std::sync::Arc::new(Bell(Mutex::new(false), Condvar::new()))
        }

        fn park(&self) {
            let mut rung = self.0.lock().unwrap();
            while !*rung {
                rung = self.1.wait(rung).unwrap();
            }
            *rung = false;
        }
    }

    /// A file whose bytes know who is at them.
    struct File {
        table: Table<()>,
        /// Leases in force, and whether a writer is writing, by byte.
        bytes: Mutex<[(u8, bool); 3]>,
    }

    impl File {
        fn new() -> Arc<Self> {
            Arc::new(File { table: Table::new(), bytes: Mutex::new([(0, false); 3]) })
        }

        fn mark(&self, range: &Range<u64>, change: impl Fn(&mut (u8, bool))) {
            let mut bytes = self.bytes.lock().unwrap();
            for byte in &mut bytes[range.start as usize..range.end as usize] {
                change(byte);
                assert!(byte.0 == 0 || !byte.1, "a writer and a lease overlap");
            }
        }

        fn read(&self, range: Range<u64>) -> bool {
            let (key, ranges) = (fresh(), [range]);
            if !self.table.try_lease(&ranges, key, &()) {
                return false;
            }
            self.mark(&ranges[0], |b| b.0 += 1);
            self.mark(&ranges[0], |b| b.0 -= 1);
            self.table.end_lease(&ranges, key).wake();
            true
        }

        fn read_waiting(&self, range: Range<u64>) {
            let bell = Bell::new();
            let key = self.table.add_lessee(Waker::from(std::sync::Arc::clone(&bell)));
            while !self.read(range.clone()) {
                bell.park();
            }
            self.table.remove_lessee(key);
        }

        fn write(&self, range: Range<u64>) {
            let bell = Bell::new();
            let waker = Waker::from(std::sync::Arc::clone(&bell));
            let key = self.table.queue_writer(range.clone(), Some(waker));
            while !self.table.is_active(key) {
                bell.park();
            }
            self.mark(&range, |b| {
                assert!(!b.1, "two writers overlap");
                b.1 = true;
            });
            self.mark(&range, |b| b.1 = false);
            self.table.remove_writer(key).wake();
        }
    }

    #[test]
    fn readers_and_a_writer() {
        check(|| {
            let file = File::new();
            let reader = thread::spawn({
                let file = Arc::clone(&file);
                move || {
                    file.read(0..2);
                    file.read(1..3);
                }
            });
            let writer = thread::spawn({
                let file = Arc::clone(&file);
                move || file.write(1..2)
            });
            file.read(0..3);
            reader.join().unwrap();
            writer.join().unwrap();
        });
    }

    #[test]
    fn two_writers_and_a_reader_that_waits() {
        check(|| {
            let file = File::new();
            let threads = [0..2, 1..3].map(|range| {
                let file = Arc::clone(&file);
                thread::spawn(move || file.write(range))
            });
            file.read_waiting(0..3);
            for thread in threads {
                thread.join().unwrap();
            }
            assert!(file.read(0..3), "a writer was left behind");
        });
    }

    #[test]
    fn nothing_is_granted_past_a_queued_writer() {
        check(|| {
            let file = File::new();
            let ranges = [0..2];
            let held = fresh();
            assert!(file.table.try_lease(&ranges, held, &()));
            let key = file.table.queue_writer(1..3, None);
            let reader = thread::spawn({
                let file = Arc::clone(&file);
                move || assert!(!file.read(2..3), "granted past a queued writer")
            });
            file.table.end_lease(&ranges, held).wake();
            assert!(file.table.is_active(key));
            reader.join().unwrap();
            file.table.remove_writer(key).wake();
        });
    }

    /// As a queued writer that is polled and then dropped.
    #[test]
    fn a_writer_that_gives_up_loses_no_wake_up() {
        check(|| {
            let file = File::new();
            let ranges = [0..1];
            let held = fresh();
            assert!(file.table.try_lease(&ranges, held, &()));
            let polled = file.table.queue_writer(0..2, Some(Waker::from(Bell::new())));
            let next = thread::spawn({
                let file = Arc::clone(&file);
                move || file.write(1..3)
            });
            let gives_up = thread::spawn({
                let file = Arc::clone(&file);
                move || {
                    if file.table.is_active(polled) {
                        file.mark(&(0..2), |b| b.1 = true);
                        file.mark(&(0..2), |b| b.1 = false);
                    }
                    file.table.remove_writer(polled).wake();
                }
            });
            file.table.end_lease(&ranges, held).wake();
            gives_up.join().unwrap();
            next.join().unwrap();
            assert!(file.read(0..3), "a writer was left behind");
        });
    }

    /// Who only tries takes nothing from who is queued.
    #[test]
    fn a_try_beside_a_queued_writer() {
        check(|| {
            let file = File::new();
            let writer = thread::spawn({
                let file = Arc::clone(&file);
                move || file.write(0..2)
            });
            let reader = thread::spawn({
                let file = Arc::clone(&file);
                move || file.read(1..3)
            });
            if let Ok(key) = file.table.try_writer(&(1..2)) {
                file.mark(&(1..2), |b| {
                    assert!(!b.1, "two writers overlap");
                    b.1 = true;
                });
                file.mark(&(1..2), |b| b.1 = false);
                file.table.remove_writer(key).wake();
            }
            writer.join().unwrap();
            reader.join().unwrap();
            assert_eq!(file.table.writers(), 0);
        });
    }
}
