//! Imports and exports over the store in memory: every line once, over restarts, faults and cancels.

use super::*;
use crate::mail::Address;
use crate::store::{CommitError, MemoryStore};
use crate::suppression::Reason;

const TENANT: TenantId = TenantId(7);
const NOW: Timestamp = Timestamp(1_800_000_000_000);

fn of_tenant() -> Wanted {
    Wanted { tenant: Some(TENANT), ..Wanted::default() }
}

fn name(account: SmtpAccountId) -> String {
    format!("shop-{}", account.0)
}

struct Bench {
    store: Arc<MemoryStore>,
    folder: tempfile::TempDir,
    lists: Arc<Suppression>,
    operations: Arc<Operations>,
}

impl Bench {
    fn new() -> Self {
        Self::over(Arc::new(MemoryStore::new()), tempfile::tempdir().unwrap())
    }

    /// As after a start of the daemon.
    fn over(store: Arc<MemoryStore>, folder: tempfile::TempDir) -> Self {
        let lists = Arc::new(Suppression::open(store.clone()));
        let operations = Arc::new(Operations::open(store.clone(), Arc::clone(&lists), folder.path()).unwrap());
        Self { store, folder, lists, operations }
    }

    async fn begin(&self, text: &str) -> OperationId {
        let place = Place::from(TENANT);
        let mut upload = self.operations.upload(&admin(), place, Reason::Import, NOW).await.unwrap();
        for piece in text.as_bytes().chunks(1000) {
            upload.write(piece).await.unwrap();
        }
        self.operations.uploaded(&admin(), upload, NOW).await.unwrap().id
    }

    fn now(&self, id: OperationId) -> Operation {
        self.operations.get(&admin(), TENANT, id).unwrap()
    }

    /// Runs until that one is finished.
    async fn run_to_the_end(&self, id: OperationId) -> Operation {
        let shutdown = Shutdown::new();
        let task = tokio::spawn(Arc::clone(&self.operations).run(shutdown.clone()));
        for _ in 0..6000 {
            if self.now(id).state.is_finished() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        shutdown.cancel();
        task.await.unwrap();
        self.now(id)
    }

    fn read(&self, id: OperationId, part: Part) -> String {
        let path = self.operations.file(&admin(), (TENANT, id), part, Timestamp::now()).unwrap();
        fs::read_to_string(path).unwrap()
    }

    fn holds(&self, address: &str) -> bool {
        self.lists.contains(TENANT, None, &Address::parse(address).unwrap(), NOW).unwrap()
    }
}

fn admin() -> Actor {
    Actor::local(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn lines_become_entries_and_what_cannot_is_kept_with_its_reason() {
    let bench = Bench::new();
    let file = "email;reason;comment;expires\r\na@x.example;complaint;\"said; so\";\r\nb@x.example;;;\n\
        not an address;;;\nc@x.example;whim;;\nd@x.example;;;soon\nA@x.example;;;\nx.example;hard-bounce;;2030-01-01T00:00:00Z\n\n";
    let id = bench.begin(file).await;
    let done = bench.run_to_the_end(id).await;
    assert_eq!(done.state, State::Done);
    assert_eq!((done.lines, done.added, done.present, done.rejected), (7, 3, 1, 3), "{done:?}");
    let page = bench.lists.list(&admin(), TENANT, None, 10).unwrap();
    let entry = |at: usize| page.entries[at].clone();
    assert_eq!(
        (entry(0).reason, entry(0).note.as_str(), entry(0).by.as_str()),
        (Reason::Complaint, "said; so", "uid 0 by local socket")
    );
    assert_eq!((entry(1).reason, entry(2).reason), (Reason::Import, Reason::HardBounce));
    assert!(entry(2).expires.is_some());
    let rejected = bench.read(id, Part::Rejected);
    let lines: Vec<&str> = rejected.lines().collect();
    assert_eq!((lines.len(), lines[0]), (4, "line,why,text"));
    assert!(lines[1].starts_with("3,") && lines[2].contains("whim") && lines[3].contains("soon"), "{rejected}");
    assert!(!bench.folder.path().join(format!("{id}.in")).exists(), "what came in is not kept");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_goes_on_after_a_restart_and_faults_and_counts_each_line_once() {
    let bench = Bench::new();
    let mut file = String::new();
    for number in 0..5000 {
        file.push_str(&if number % 10 == 0 { format!("broken {number}\n") } else { format!("u{number}@x.example\n") });
    }
    let id = bench.begin(&file).await;
    let shutdown = Shutdown::new();
    let task = tokio::spawn(Arc::clone(&bench.operations).run(shutdown.clone()));
    while bench.now(id).lines < 1000 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    shutdown.cancel();
    task.await.unwrap();
    // Rejected lines that were written and not committed, as a crash leaves them.
    let path = bench.folder.path().join(format!("{id}.rejected"));
    use std::io::Write;
    fs::OpenOptions::new().append(true).open(path).unwrap().write_all(b"torn").unwrap();
    let Bench { store, folder, .. } = bench;
    store.fail_next(1, CommitError::Full("disk".to_owned()));
    let bench = Bench::over(store, folder);
    let done = bench.run_to_the_end(id).await;
    assert_eq!(
        (done.state.clone(), done.lines, done.added, done.present, done.rejected),
        (State::Done, 5000, 4500, 0, 500)
    );
    let rejected = bench.read(id, Part::Rejected);
    assert_eq!((rejected.lines().count(), rejected.contains("torn")), (501, false));
    let (mut from, mut count) = (None, 0);
    loop {
        let page = bench.lists.list(&admin(), TENANT, from.as_ref(), 1000).unwrap();
        count += page.entries.len();
        from = page.next;
        if from.is_none() {
            break;
        }
    }
    assert_eq!(count, 4500);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_is_imported_as_it_was_and_no_cell_is_a_formula() {
    let bench = Bench::new();
    let id = bench.begin("email,note\n+tag@x.example,=1+1\n\"=a@x.example\",plain\nx.example,'quoted\n").await;
    assert_eq!(bench.run_to_the_end(id).await.added, 3);
    let exported = bench.operations.export(&admin(), Place::from(TENANT), Form::Plain, NOW).await.unwrap();
    let done = bench.run_to_the_end(exported.id).await;
    assert_eq!((done.state.clone(), done.written), (State::Done, 3));
    let text = bench.read(exported.id, Part::Result);
    for cell in text.lines().flat_map(|line| line.split(',')) {
        let cell = cell.trim_start_matches('"');
        assert!(!cell.starts_with(['=', '+', '-', '@']), "{text}");
    }
    let other = Bench::new();
    let again = other.begin(&text).await;
    let done = other.run_to_the_end(again).await;
    assert_eq!((done.added, done.rejected), (3, 0), "{text}");
    let shown = |bench: &Bench| {
        let page = bench.lists.list(&admin(), TENANT, None, 10).unwrap();
        page.entries.into_iter().map(|entry| (entry.subject, entry.reason, entry.note)).collect::<Vec<_>>()
    };
    assert_eq!(shown(&bench), shown(&other));
    let hashed = bench.operations.export(&admin(), Place::from(TENANT), Form::Hashed, NOW).await.unwrap();
    bench.run_to_the_end(hashed.id).await;
    let text = bench.read(hashed.id, Part::Result);
    assert_eq!(text.lines().count(), 4);
    assert!(!text.contains("example") && text.lines().nth(1).unwrap().split(',').next().unwrap().len() == 64, "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_is_cancelled_stops_and_what_it_did_stays() {
    let bench = Bench::new();
    let id = bench.begin("a@x.example\n").await;
    let stranger = Actor::of("o", Role::TenantOwner(TenantId(8)));
    assert!(bench.operations.cancel(&stranger, TENANT, id, NOW).await.is_err());
    assert!(bench.operations.list(&stranger, &of_tenant(), name).is_err());
    assert!(bench.operations.list(&stranger, &Wanted::default(), name).is_err(), "everybody's are the instance's");
    bench.operations.cancel(&admin(), TENANT, id, NOW).await.unwrap();
    assert_eq!(bench.run_to_the_end(id).await.state, State::Cancelled);
    assert!(!bench.holds("a@x.example"));
    assert!(bench.operations.cancel(&admin(), TENANT, id, NOW).await.is_err(), "it is finished");
    assert_eq!(bench.operations.list(&admin(), &of_tenant(), name).unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_has_a_few_under_way_and_an_upload_that_breaks_off_leaves_nothing() {
    let bench = Bench::new();
    for _ in 0..UNFINISHED_MAX {
        bench.begin("a@x.example\n").await;
    }
    let full = bench.operations.export(&admin(), Place::from(TENANT), Form::Plain, NOW).await;
    let Err(AdminError::Full(text, secs)) = full else { panic!("it ends by itself: {full:?}") };
    assert!(text.starts_with("4 operations are under way") && secs == ROOM_AGAIN_SECS, "{text}");
    let place = Place::from(TenantId(8));
    let mut upload = bench.operations.upload(&admin(), place, Reason::Import, NOW).await.unwrap();
    upload.write(b"b@x.example\n").await.unwrap();
    let files = || fs::read_dir(bench.folder.path()).unwrap().count();
    assert_eq!(files(), UNFINISHED_MAX + 1);
    drop(upload);
    assert_eq!(files(), UNFINISHED_MAX);
    fs::write(bench.folder.path().join("00000000000000000000000000.in"), "left by a crash").unwrap();
    let Bench { store, folder, .. } = bench;
    let bench = Bench::over(store, folder);
    assert_eq!(fs::read_dir(bench.folder.path()).unwrap().count(), UNFINISHED_MAX);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_million_lines_one_is_held_at_a_time() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("million.csv");
    let mut out = io::BufWriter::new(fs::File::create(&path).unwrap());
    for number in 0..1_000_000_u32 {
        use std::io::Write;
        writeln!(out, "user{number}@receiver.example,manual,imported").unwrap();
    }
    drop(out);
    let mut input = io::BufReader::new(fs::File::open(&path).unwrap());
    let (mut lines, mut longest) = (0_u32, 0);
    while let Some((line, octets)) = next_line(&mut input).unwrap() {
        let Line::Text(text) = line else { panic!("unreadable") };
        longest = longest.max(octets);
        assert_eq!(cells(&text, ',').unwrap().len(), 3);
        lines += 1;
    }
    assert_eq!(lines, 1_000_000);
    assert!(longest < 100);
}

#[tokio::test(flavor = "multi_thread")]
async fn operations_are_found_by_tenant_kind_state_and_text_newest_first() {
    let bench = Bench::new();
    let mut made = Vec::new();
    for number in 0..4_u64 {
        let (tenant, at) = (TenantId(7 + number % 2), NOW.plus(Duration::from_secs(number)));
        let account = (number == 3).then_some(SmtpAccountId(4711));
        let place = Place { account, ..Place::from(tenant) };
        let by = Actor::of(format!("user {number}"), Role::InstanceAdmin);
        made.push(bench.operations.export(&by, place, Form::Plain, at).await.unwrap().id);
    }
    let id = bench.begin("a@x.example\n").await;
    bench.operations.cancel(&admin(), TENANT, id, NOW).await.unwrap();
    assert_eq!(bench.run_to_the_end(id).await.state, State::Cancelled);
    let found = |wanted: Wanted| -> Vec<OperationId> {
        bench.operations.list(&admin(), &wanted, name).unwrap().into_iter().map(|operation| operation.id).collect()
    };
    let exports = Wanted { kind: Some("export"), ..Wanted::default() };
    assert_eq!(found(exports.clone()), [made[3], made[2], made[1], made[0]]);
    assert_eq!(found(Wanted { tenant: Some(TenantId(8)), ..exports.clone() }), [made[3], made[1]]);
    assert_eq!(found(Wanted { state: Some("cancelled"), ..Wanted::default() }), [id]);
    let with = |text: &str| Wanted { text: Some(text.to_owned()), ..exports.clone() };
    assert_eq!(found(with("USER 2")), [made[2]]);
    assert_eq!(found(with("shop-4711")), [made[3]]);
    assert_eq!(found(with(&made[1].to_string())), [made[1]]);
    assert!(found(with("nobody")).is_empty() && found(Wanted { state: Some("failed"), ..of_tenant() }).is_empty());
    for (kind, word) in [(Kind::Import { reason: Reason::Import }, "import"), (Kind::Tenant, "tenant-export")] {
        assert!(kind.word() == word && KIND_WORDS.contains(&word));
    }
    for state in [State::Waiting, State::Running, State::Done, State::Cancelled, State::Failed(String::new())] {
        assert!(STATE_WORDS.contains(&state.word()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn files_of_an_account_s_list_are_for_whoever_has_a_part_in_it() {
    use crate::access::{Action, Narrowing};
    let bench = Bench::new();
    let [own, other] =
        [SmtpAccountId(1), SmtpAccountId(2)].map(|account| Place { account: Some(account), ..TENANT.into() });
    let narrowed = |narrowing| Actor { narrowing: Arc::new(narrowing), ..Actor::of("d", Role::Developer(TENANT)) };
    let accounts = Some([(SmtpAccountId(1), Action::Read)].into());
    let person = narrowed(Narrowing { accounts, ..Narrowing::default() });
    let domains = Some(vec![crate::mail::Domain::parse("a.example").unwrap()]);
    let key = narrowed(Narrowing { domains, ..Narrowing::default() });
    for (place, is_its) in [(own, true), (other, false), (Place::from(TENANT), false)] {
        let made = bench.operations.export(&admin(), place, Form::Plain, NOW).await.unwrap();
        bench.run_to_the_end(made.id).await;
        let file = |actor: &Actor| bench.operations.file(actor, (TENANT, made.id), Part::Result, Timestamp::now());
        assert!(file(&admin()).is_ok());
        assert_eq!(file(&person).is_ok(), is_its, "{place:?}");
        assert_eq!(bench.operations.get(&person, TENANT, made.id).is_ok(), is_its, "{place:?}");
        assert!(file(&key).is_err(), "{place:?}");
    }
    let seen = bench.operations.list(&person, &of_tenant(), name).unwrap();
    assert_eq!(seen.iter().map(|operation| operation.account).collect::<Vec<_>>(), [Some(SmtpAccountId(1))]);
    assert!(bench.operations.list(&key, &of_tenant(), name).is_err());
}

#[tokio::test]
async fn files_on_their_way_in_count_as_operations_of_their_tenant() {
    let bench = Bench::new();
    let admin = admin();
    let upload = || bench.operations.upload(&admin, Place::from(TENANT), Reason::Import, NOW);
    let mut coming = Vec::new();
    for _ in 0..UNFINISHED_MAX {
        coming.push(upload().await.unwrap());
    }
    let full = upload().await.map(drop);
    assert!(matches!(full, Err(AdminError::Full(..))), "or many at once would fill the disk: {full:?}");
    assert!(bench.operations.export(&admin, Place::from(TENANT), Form::Plain, NOW).await.is_err());
    coming.pop();
    let upload = upload().await.unwrap();
    assert!(bench.operations.uploaded(&admin, upload, NOW).await.is_ok());
}
