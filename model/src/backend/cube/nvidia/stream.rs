//! A stream of ours, ordered with the commands of the CubeCL runtime; see the module above.

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

use super::kernel::Kernels;
use super::probe::{FIRST_CONTEXT_EVENTS, OLDEST_CAPABILITY};
use super::products::Library;

/// The runtime's server: the owner of its stream and memory, on its own thread.
type CudaServer = <CudaRuntime as Runtime>::Server;

/// What went wrong in a call of a CUDA library.
pub(super) type Outcome<T> = Result<T, String>;

/// One GPU as this module uses it. It lives as long as the process, as the runtime's server does.
pub(in super::super) struct Gpu {
    context: sys::CUcontext,
    /// Our stream.
    pub(super) stream: sys::CUstream,
    before: sys::CUevent,
    after: sys::CUevent,
    /// Compute capability.
    pub(super) capability: (i32, i32),
    /// cuBLASLt, if installed.
    pub(super) products: Option<Library>,
    /// Kernels of ours.
    pub(super) kernels: Kernels,
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
    /// The GPU whose stream of ours is ahead of the runtime's, with the way to its server.
    open: Option<(Arc<Gpu>, Client)>,
}

thread_local! {
    static RUN: RefCell<Run> = RefCell::default();
}

/// Calls `work`, in which this thread gives GPUs no work but through the ops of this backend, and
/// no other thread works on the same tensors: what runs on our stream one after the other is then
/// not ordered with the runtime's in between.
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

/// Lets the runtime's next commands wait for what runs on our stream. The backend calls it before it
/// gives the runtime any.
pub(in super::super) fn before_other_work() {
    if let Some((gpu, client)) = RUN.with_borrow_mut(|run| run.open.take()) {
        server(&client).submit(move |_| {
            if let Err(reason) = gpu.enter().and_then(|()| gpu.let_others_wait()) {
                gpu.fail(reason);
            }
        });
    }
}

/// The text of a driver error.
pub(super) fn driver(what: &str, error: result::DriverError) -> String {
    format!("{what}: {error:?}")
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

    /// Opens GPU `index` in the primary context, which the runtime retained.
    fn open(index: i32) -> Outcome<Self> {
        let mut version = 0;
        // SAFETY: writes the version to the integer, which outlives the call.
        unsafe { sys::cuDriverGetVersion(&mut version).result() }
            .map_err(|error| driver("cuDriverGetVersion", error))?;
        if version < FIRST_CONTEXT_EVENTS {
            return Err(format!("the driver is of CUDA {version}"));
        }
        let device = result::device::get(index).map_err(|error| driver("cuDeviceGet", error))?;
        // SAFETY: `device` came from the driver; the context is retained for the process.
        let (context, capability) = unsafe {
            use sys::CUdevice_attribute::{
                CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR as MAJOR,
                CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR as MINOR,
            };
            let context = result::primary_ctx::retain(device)
                .map_err(|error| driver("cuDevicePrimaryCtxRetain", error))?;
            result::ctx::set_current(context).map_err(|error| driver("cuCtxSetCurrent", error))?;
            let attribute = |which| {
                result::device::get_attribute(device, which)
                    .map_err(|error| driver("cuDeviceGetAttribute", error))
            };
            (context, (attribute(MAJOR)?, attribute(MINOR)?))
        };
        if capability < OLDEST_CAPABILITY {
            return Err(format!("compute capability {capability:?}"));
        }
        let stream = result::stream::create(result::stream::StreamKind::NonBlocking)
            .map_err(|error| driver("cuStreamCreate", error))?;
        let event = || {
            result::event::create(CUevent_flags::CU_EVENT_DISABLE_TIMING)
                .map_err(|error| driver("cuEventCreate", error))
        };
        Ok(Self {
            context,
            stream,
            before: event()?,
            after: event()?,
            capability,
            products: Library::open().ok(),
            kernels: Kernels::default(),
            failure: Mutex::default(),
        })
    }

    /// Makes the context current on the calling thread, for calls that load or plan.
    pub fn enter(&self) -> Outcome<()> {
        // SAFETY: the context is retained for the process.
        unsafe { result::ctx::set_current(self.context) }
            .map_err(|error| driver("cuCtxSetCurrent", error))
    }

    /// Puts `task`, which submits work on our stream, between the commands of the runtime. It gets
    /// the addresses of `tensors` and runs later, on the runtime's thread.
    ///
    /// # Panics
    /// When an earlier task failed: the device or its libraries are broken.
    pub fn enqueue<const N: usize>(
        self: &Arc<Self>,
        tensors: [&CubeTensor; N],
        task: impl FnOnce(&Self, [u64; N]) -> Outcome<()> + Send + 'static,
    ) {
        self.enqueue_all(&tensors, move |gpu, addresses| {
            task(gpu, std::array::from_fn(|i| addresses[i]))
        });
    }

    /// [`Self::enqueue`] for any number of tensors, at least one.
    pub fn enqueue_all(
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

    /// Makes our stream wait for all that was submitted to the context.
    fn wait_for_others(&self) -> Outcome<()> {
        let wait = CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
        // SAFETY: context, stream and events live as long as the process.
        unsafe {
            sys::cuCtxRecordEvent(self.context, self.before)
                .result()
                .map_err(|error| driver("cuCtxRecordEvent", error))?;
            result::stream::wait_event(self.stream, self.before, wait)
                .map_err(|error| driver("cuStreamWaitEvent", error))
        }
    }

    /// Makes all that is submitted to the context from now on wait for our stream.
    fn let_others_wait(&self) -> Outcome<()> {
        // SAFETY: as above.
        unsafe {
            result::event::record(self.after, self.stream)
                .map_err(|error| driver("cuEventRecord", error))?;
            sys::cuCtxWaitEvent(self.context, self.after)
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
        self.enter()?;
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
