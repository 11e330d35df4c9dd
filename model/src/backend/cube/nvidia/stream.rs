//! A GPU with its second stream, ordered with the commands of the CubeCL runtime: see the top of the
//! folder.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use burn_cubecl::tensor::CubeTensor;
use cubecl::client::Client;
use cubecl::device_handle::DeviceHandle;
use cubecl::server::{BufferBinding, ServerStorage};
use cubecl_cuda::CudaRuntime;
use cubecl_environment::stream::StreamId;
use cubecl_runtime::config::memory::CudaAllocator;
use cubecl_runtime::config::{CubeClRuntimeConfig, RuntimeConfig};
use cubecl_runtime::runtime::Runtime;
use cudarc::driver::result;
use cudarc::driver::sys::{self, CUevent_flags, CUevent_wait_flags};

use super::blas::Library;
use super::blas_tuning::{Trial, Tuning};
use super::context::{Context, Outcome, Stream, driver};
use super::kernel::{Kernel, Kernels};
use super::problem::Problem;
use super::source::Source;

/// The runtime's server: the owner of its stream and memory, on its own thread.
type CudaServer = <CudaRuntime as Runtime>::Server;

/// One GPU as this folder uses it. It lives as long as the process, as the runtime's server does.
pub(in super::super) struct Gpu {
    context: Context,
    /// The second stream.
    stream: Stream,
    before: sys::CUevent,
    after: sys::CUevent,
    kernels: Kernels,
    /// cuBLASLt, if installed.
    blas: Option<Library>,
    tuning: Tuning,
    /// The first call that failed after it was enqueued.
    failure: Mutex<Option<String>>,
}

// SAFETY: the handles are of the driver, which may be called from any thread; streams and events
// are used on the runtime's thread alone.
unsafe impl Send for Gpu {}
// SAFETY: as above.
unsafe impl Sync for Gpu {}

/// Whether the runtime takes memory from CUDA and gives it back at once, as it does unless its
/// configuration says otherwise; else that has a place in the order of its stream.
static SYNCHRONOUS_ALLOCATOR: LazyLock<bool> =
    LazyLock::new(|| CubeClRuntimeConfig::get().memory.cuda.allocator == CudaAllocator::Sync);

/// What a thread does between two commands of the runtime.
#[derive(Default)]
struct Run {
    /// Calls of [`uninterrupted`] the thread is in.
    depth: usize,
    /// The GPU whose second stream is ahead of the runtime's, with the way to its server.
    open: Option<(Arc<Gpu>, Client)>,
}

thread_local! {
    static RUN: RefCell<Run> = RefCell::default();
}

/// Calls `work`, in which this thread gives GPUs no work but through the ops of this backend, and
/// no other thread works on the same tensors: what runs on the second stream one after the other is
/// then not ordered with the runtime's in between.
pub(crate) fn uninterrupted<R>(work: impl FnOnce() -> R) -> R {
    struct End;
    impl Drop for End {
        fn drop(&mut self) {
            let outermost = RUN.with_borrow_mut(|run| {
                run.depth -= 1;
                run.depth == 0
            });
            if outermost {
                before_other_work();
            }
        }
    }
    if !*SYNCHRONOUS_ALLOCATOR {
        return work();
    }
    RUN.with_borrow_mut(|run| run.depth += 1);
    let _end = End;
    work()
}

/// Makes the runtime's next commands wait for what runs on the second stream. The backend calls it
/// before it gives the runtime any.
pub(in super::super) fn before_other_work() {
    if let Some((gpu, client)) = RUN.with_borrow_mut(|run| run.open.take()) {
        server(&client).submit(move |_| {
            if let Err(reason) = gpu.context.enter().and_then(|()| gpu.let_others_wait()) {
                gpu.fail(reason);
            }
        });
    }
}

impl Gpu {
    /// The GPU behind `tensor`; none for another runtime, or where the driver is too old for the
    /// order of two streams.
    pub fn of(tensor: &CubeTensor) -> Option<Arc<Self>> {
        static GPUS: LazyLock<Mutex<HashMap<u16, Option<Arc<Gpu>>>>> =
            LazyLock::new(Mutex::default);
        let client = &tensor.client;
        if client.name() != "cuda" {
            return None;
        }
        let index = client.service_id().device.index_id;
        let mut gpus = GPUS.lock().unwrap_or_else(PoisonError::into_inner);
        gpus.entry(index)
            .or_insert_with(|| {
                let opened = server(client).submit_blocking(|_| Self::open(i32::from(index)));
                opened.ok().and_then(Result::ok).map(Arc::new)
            })
            .clone()
    }

    /// Opens GPU `index`.
    fn open(index: i32) -> Outcome<Self> {
        let context = Context::open(index)?;
        let stream = Stream::create()?;
        let event = || {
            result::event::create(CUevent_flags::CU_EVENT_DISABLE_TIMING)
                .map_err(|error| driver("cuEventCreate", error))
        };
        Ok(Self {
            context,
            stream,
            before: event()?,
            after: event()?,
            kernels: Kernels::new(context),
            blas: Library::open().ok(),
            tuning: Tuning::default(),
            failure: Mutex::default(),
        })
    }

    /// Compute capability.
    pub fn capability(&self) -> (i32, i32) {
        self.context.capability
    }

    /// The kernel called `name` of `source`, whose blocks use `shared` bytes of shared memory.
    ///
    /// # Panics
    /// When it does not compile: NVRTC does not fit the driver or the GPU.
    pub fn kernel<const N: usize>(
        &self,
        source: &Source<N>,
        name: &'static str,
        shared: usize,
    ) -> Kernel {
        self.kernels
            .get(source, name, shared)
            .unwrap_or_else(|reason| panic!("{} kernels: {reason}", source.subject))
    }

    /// Whether [`Self::multiply`] computes `problem`: cuBLASLt is installed and takes it.
    pub fn multiplies(&self, problem: Problem) -> bool {
        self.blas.as_ref().is_some_and(|blas| blas.plan(problem, self.context).is_some())
    }

    /// out = beta · addend + left · right, of the tensors (left, right, addend, out), for a `problem`
    /// that it [multiplies](Self::multiplies). `addend` may be `out`.
    ///
    /// # Panics
    /// For another problem.
    pub fn multiply(self: &Arc<Self>, problem: Problem, tensors: [&CubeTensor; 4], beta: f32) {
        let plan = self.blas.as_ref().and_then(|blas| blas.plan(problem, self.context));
        let Some(plan) = plan else { panic!("cuBLASLt does not compute {problem:?}") };
        self.submit(&tensors, move |gpu, addresses| {
            let Some(blas) = &gpu.blas else { return Err("cuBLASLt is gone".to_string()) };
            let [left, right, addend, out] = [0, 1, 2, 3].map(|i| addresses[i]);
            // Whole: its single fields may not cross threads.
            let plan = plan;
            let trial = Trial { kernels: &gpu.kernels, stream: gpu.stream };
            let algorithm = gpu.tuning.algorithm(trial, blas, problem, &plan);
            blas.multiply(gpu.stream, &plan, &algorithm, (left, right), (addend, beta), out)
        });
    }

    /// Puts `task`, which launches kernels on the second stream, between the commands of the runtime.
    /// It gets the stream and the addresses of `tensors` and runs later, on the runtime's thread.
    ///
    /// # Panics
    /// When an earlier task failed: the device or its libraries are broken.
    pub fn enqueue<const N: usize>(
        self: &Arc<Self>,
        tensors: [&CubeTensor; N],
        task: impl FnOnce(Stream, [u64; N]) -> Outcome<()> + Send + 'static,
    ) {
        self.submit(&tensors, move |gpu, addresses| {
            task(gpu.stream, std::array::from_fn(|i| addresses[i]))
        });
    }

    /// [`Self::enqueue`] for any number of tensors, at least one.
    pub fn enqueue_all(
        self: &Arc<Self>,
        tensors: &[&CubeTensor],
        task: impl FnOnce(Stream, &[u64]) -> Outcome<()> + Send + 'static,
    ) {
        self.submit(tensors, move |gpu, addresses| task(gpu.stream, addresses));
    }

    /// [`Self::enqueue_all`] for a task that needs the GPU.
    fn submit(
        self: &Arc<Self>,
        tensors: &[&CubeTensor],
        task: impl FnOnce(&Self, &[u64]) -> Outcome<()> + Send + 'static,
    ) {
        if let Some(failure) = &*self.failure.lock().unwrap_or_else(PoisonError::into_inner) {
            panic!("the GPU failed: {failure}");
        }
        let client = &tensors[0].client;
        let (continues, stays_open) = RUN.with_borrow(|run| {
            let open = run.open.as_ref().is_some_and(|(gpu, _)| Arc::ptr_eq(gpu, self));
            (open, run.depth > 0)
        });
        if stays_open && !continues {
            before_other_work();
            RUN.with_borrow_mut(|run| run.open = Some((self.clone(), client.clone())));
        }
        // Bindings, not handles: they keep the memory and leave it free to be worked on in place.
        let bindings = tensors.iter().map(|tensor| tensor.handle.clone().binding()).collect();
        let (gpu, stream) = (self.clone(), StreamId::current());
        server(client).submit(move |server| {
            if let Err(reason) = gpu.run(server, bindings, stream, (continues, stays_open), task) {
                gpu.fail(reason);
            }
        });
    }

    /// Keeps the first failure for the next call.
    fn fail(&self, reason: String) {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(reason);
    }

    /// Makes the second stream wait for all that was submitted to the context.
    fn wait_for_others(&self) -> Outcome<()> {
        let wait = CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
        // SAFETY: context, stream and events live as long as the process.
        unsafe {
            sys::cuCtxRecordEvent(self.context.handle, self.before)
                .result()
                .map_err(|error| driver("cuCtxRecordEvent", error))?;
            result::stream::wait_event(self.stream.0, self.before, wait)
                .map_err(|error| driver("cuStreamWaitEvent", error))
        }
    }

    /// Makes all that is submitted to the context from now on wait for the second stream.
    fn let_others_wait(&self) -> Outcome<()> {
        // SAFETY: as above.
        unsafe {
            result::event::record(self.after, self.stream.0)
                .map_err(|error| driver("cuEventRecord", error))?;
            sys::cuCtxWaitEvent(self.context.handle, self.after)
                .result()
                .map_err(|error| driver("cuCtxWaitEvent", error))
        }
    }

    fn run(
        &self,
        server: &mut CudaServer,
        bindings: Vec<BufferBinding>,
        stream: StreamId,
        (continues, stays_open): (bool, bool),
        task: impl FnOnce(&Self, &[u64]) -> Outcome<()>,
    ) -> Outcome<()> {
        let mut resources = Vec::with_capacity(bindings.len());
        for binding in bindings {
            let resource = server.get_resource(binding, stream);
            resources.push(resource.map_err(|error| error.to_string())?);
        }
        let addresses: Vec<u64> = resources.iter().map(|r| r.resource().ptr).collect();
        self.context.enter()?;
        if !continues {
            self.wait_for_others()?;
        }
        let outcome = task(self, &addresses);
        if !stays_open {
            // Also after a failure: what was submitted before it may still write.
            self.let_others_wait()?;
        }
        outcome
    }
}

fn server(client: &Client) -> DeviceHandle<CudaServer> {
    DeviceHandle::new(client.service_id().device)
}
