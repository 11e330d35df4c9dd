//! Every kernel in both types through CubeCL's CUDA C++ and NVRTC, on a machine without a GPU: the
//! ops run on a runtime that transpiles what is launched and executes nothing.

use std::collections::BTreeMap;
use std::sync::Arc;

use burn::tensor::{DType, Shape};
use burn_cubecl::CubeDevice;
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use cubecl::client::Client;
use cubecl::ir::features::TypeUsage;
use cubecl::ir::{
    DeviceIdentity, DeviceProperties, ElemType, FloatKind, HardwareProperties, IntKind,
    MemoryDeviceProperties, UIntKind,
};
use cubecl::prelude::*;
use cubecl_common::bytes::Bytes;
use cubecl_common::device::{DeviceId, DeviceService, ServerUtilitiesHandle, ServiceId};
use cubecl_common::device_handle::DeviceHandle;
use cubecl_common::profile::{ProfileDuration, TimingMethod};
use cubecl_cuda::{CudaCompilationOptions, CudaCompiler, CudaDevice, CudaRuntime};
use cubecl_environment::backtrace::BackTrace;
use cubecl_environment::future::DynFut;
use cubecl_environment::stream::StreamId;
use cubecl_runtime::compiler::Compiler;
use cubecl_runtime::dry_run::LaunchMode;
use cubecl_runtime::kernel::{CubeKernel, define_kernel};
use cubecl_runtime::logging::ServerLogger;
use cubecl_runtime::memory_management::{
    ManagedMemoryHandle, MemoryAllocationMode, StreamMemoryReport,
};
use cubecl_runtime::runtime::Runtime;
use cubecl_runtime::server::{
    BufferBinding, CopyDescriptor, Handle, IoError, KernelArguments, MemoryLayout,
    MemoryLayoutDescriptor, MemoryLayoutPolicy, ProfileError, ProfilingToken, Server,
    ServerCommunication, ServerError, ServerStorage, ServerUtilities,
};
use cubecl_runtime::storage::{
    ComputeStorage, ManagedResource, StorageHandle, StorageId, StorageUtilization,
};

use super::nvidia::{includes_for_tests, machine_code, nvrtc_for_tests};
use super::*;

/// The device of the test, a number no other service has.
const DEVICE: DeviceId = DeviceId { type_id: 0, index_id: 77 };

/// Transpiles launches to CUDA C++ as for an H100.
#[derive(Debug)]
struct Transpiler {
    utilities: Arc<ServerUtilities>,
    /// CUDA C++ by kernel name and [`without_numbers`].
    sources: BTreeMap<String, BTreeMap<String, String>>,
    refused: Vec<String>,
}

/// A source with the numbers of its variables left out, which differ from one transpilation to
/// the next.
fn without_numbers(source: &str) -> String {
    let mut text = String::with_capacity(source.len());
    let mut in_name = false;
    for c in source.chars() {
        in_name = c == 'v' || (in_name && c.is_ascii_digit());
        if !(in_name && c.is_ascii_digit()) {
            text.push(c);
        }
    }
    text
}

/// Tensors without gaps and with nothing behind them.
struct Rows;

impl MemoryLayoutPolicy for Rows {
    fn apply(
        &self,
        service: ServiceId,
        stream: StreamId,
        descriptors: &[MemoryLayoutDescriptor],
    ) -> (Handle, Vec<MemoryLayout>) {
        let descriptor = &descriptors[0];
        let mut strides = vec![1; descriptor.shape.len()];
        for i in (0..strides.len().saturating_sub(1)).rev() {
            strides[i] = strides[i + 1] * descriptor.shape[i + 1];
        }
        let bytes = descriptor.shape.iter().product::<usize>() * descriptor.elem_size;
        let handle = Handle::new(service, stream, bytes as u64);
        (handle.clone(), vec![MemoryLayout::new(handle, strides)])
    }
}

impl DeviceService for Transpiler {
    fn init(device: DeviceId) -> Self {
        let hardware = HardwareProperties {
            load_width: 128,
            vector_register_count: None,
            plane_size_min: 32,
            plane_size_max: 32,
            max_bindings: 1024,
            max_shared_memory_size: 227 * 1024,
            max_cube_count: (i32::MAX as u32, 65_535, 65_535),
            max_units_per_cube: 1024,
            max_cube_dim: (1024, 1024, 64),
            num_streaming_multiprocessors: Some(132),
            num_tensor_cores: None,
            min_tensor_cores_dim: None,
            num_cpu_cores: None,
            last_level_cache_size: None,
            max_vector_size: usize::MAX,
            cube_mma_reserved_shared_memory: 0,
        };
        let identity = DeviceIdentity {
            name: "transpiler".to_string(),
            fingerprint: "transpiler".to_string(),
            physical: None,
        };
        let mut properties = DeviceProperties::new(
            Default::default(),
            MemoryDeviceProperties::new(1 << 30, 512),
            hardware,
            TimingMethod::System,
            identity,
        );
        for elem in [
            ElemType::Float(FloatKind::F32),
            ElemType::Float(FloatKind::BF16),
            ElemType::Int(IntKind::I32),
            ElemType::UInt(UIntKind::U32),
            ElemType::UInt(UIntKind::U64),
            ElemType::Bool,
        ] {
            properties.register_type_usage(elem, TypeUsage::all());
        }
        let (utilities, _) = ServerUtilities::init(
            ServiceId::of::<Self>(device),
            "transpiler",
            properties,
            CudaRuntime::target_properties(),
            Arc::new(ServerLogger::default()),
            Rows,
        );
        Self { utilities: Arc::new(utilities), sources: BTreeMap::new(), refused: Vec::new() }
    }

    fn utilities(&self) -> ServerUtilitiesHandle {
        self.utilities.clone()
    }
}

impl ServerCommunication for Transpiler {}

impl Server for Transpiler {
    fn initialize_memory(
        &mut self,
        _: ManagedMemoryHandle,
        _: u64,
        _: StreamId,
    ) -> Result<(), ServerError> {
        Ok(())
    }

    fn logger(&self) -> Arc<ServerLogger> {
        self.utilities.logger.clone()
    }

    fn utilities(&self) -> Arc<ServerUtilities> {
        self.utilities.clone()
    }

    fn read(
        &mut self,
        descriptors: Vec<CopyDescriptor>,
        _: StreamId,
    ) -> DynFut<Result<Vec<Bytes>, ServerError>> {
        panic!("nothing was computed: {} reads", descriptors.len())
    }

    fn write(&mut self, _: Vec<(CopyDescriptor, Bytes)>, _: StreamId) {}

    fn sync(&mut self, _: Vec<BufferBinding>, _: StreamId) -> DynFut<Result<(), ServerError>> {
        Box::pin(async { Ok(()) })
    }

    fn check(&mut self, _: Vec<BufferBinding>, _: StreamId) -> Result<(), ServerError> {
        Ok(())
    }

    unsafe fn launch(
        &mut self,
        kernel: Box<dyn CubeKernel>,
        _: CubeCount,
        _: KernelArguments,
        _: StreamId,
        _: LaunchMode,
    ) {
        let name = kernel.name().to_string();
        let mut options = CudaCompilationOptions::default();
        options.cpp.warp_size = 32;
        options.cpp.supports_features.grid_constants = true;
        let source = define_kernel(&*kernel)
            .and_then(|definition| CudaCompiler::default().compile(definition, &options));
        match source {
            Ok(source) => {
                let source = source.to_string();
                self.sources.entry(name).or_default().insert(without_numbers(&source), source);
            }
            Err(error) => self.refused.push(format!("{name}: {error:?}")),
        }
    }

    fn flush(&mut self, _: StreamId) -> Result<(), ServerError> {
        Ok(())
    }

    fn memory_report(&mut self, _: StreamId) -> Option<StreamMemoryReport> {
        None
    }

    fn memory_cleanup(&mut self, _: StreamId) -> Result<(), ServerError> {
        Ok(())
    }

    fn start_profile(&mut self, _: StreamId) -> Result<ProfilingToken, ServerError> {
        Ok(ProfilingToken { id: 0 })
    }

    fn end_profile(
        &mut self,
        _: StreamId,
        _: ProfilingToken,
    ) -> Result<ProfileDuration, ProfileError> {
        Err(ProfileError::NotRegistered { backtrace: BackTrace::capture() })
    }

    fn allocation_mode(&mut self, _: MemoryAllocationMode, _: StreamId) {}
}

/// No memory.
struct Nothing;

impl ComputeStorage for Nothing {
    type Resource = ();

    fn alignment(&self) -> usize {
        512
    }

    fn get(&mut self, _: &StorageHandle) -> Result<(), IoError> {
        Ok(())
    }

    fn alloc(&mut self, size: u64) -> Result<StorageHandle, IoError> {
        let utilization = StorageUtilization { offset: 0, size };
        Ok(StorageHandle::new(StorageId::new(), utilization))
    }

    fn dealloc(&mut self, _: StorageId) {}

    fn flush(&mut self) {}

    fn bytes_allocated(&self) -> u64 {
        0
    }
}

impl ServerStorage for Transpiler {
    type Storage = Nothing;

    fn get_resource(
        &mut self,
        _: BufferBinding,
        _: StreamId,
    ) -> Result<ManagedResource<()>, ServerError> {
        unreachable!("nothing asks this runtime for memory")
    }
}

/// Inputs of the ops on the transpiler: a batch of two rows of 96 tokens.
struct Inputs<'a> {
    client: &'a Client,
    /// The type of activations and of matrix weights.
    dtype: DType,
}

// Channels, words and feed-forward width.
const C: usize = 192;
const V: usize = 320;
const F: usize = 512;

impl Inputs<'_> {
    fn tensor(&self, dims: &[usize], dtype: DType) -> X {
        let device = CubeDevice::Cuda(CudaDevice::default());
        empty_device_contiguous_dtype(
            self.client.clone(),
            device,
            Shape::from(dims.to_vec()),
            dtype,
        )
    }

    fn active(&self, dims: &[usize]) -> X {
        self.tensor(dims, self.dtype)
    }

    fn f32(&self, dims: &[usize]) -> X {
        self.tensor(dims, DType::F32)
    }

    /// An activation of C channels.
    fn x(&self) -> X {
        self.active(&[2, 96, C])
    }

    /// Ids, targets, or the first keys that queries see.
    fn ids(&self) -> X {
        self.tensor(&[2, 96], DType::I32)
    }

    /// A gain of a norm, or its gradient.
    fn gain(&self) -> X {
        self.f32(&[C])
    }

    fn rstd(&self) -> X {
        self.f32(&[2, 96])
    }

    /// A matrix of the head in f32: a master weight, a moment or a gradient.
    fn master(&self) -> X {
        self.f32(&[V, C])
    }

    /// Calls `op` with an activation that it may overwrite, then with one that another holds.
    fn alone_and_shared(&self, x: impl Fn() -> X, op: impl Fn(X)) {
        op(x());
        let shared = x();
        let kept = shared.clone();
        op(shared);
        drop(kept);
    }
}

const HYPER: AdamWStep = AdamWStep {
    lr: 1e-3,
    beta1: 0.9,
    beta2: 0.95,
    eps: 1e-8,
    weight_decay: 0.1,
    step: 1,
    grad_scale: 1.0,
};

/// Launches the op called `name`.
fn launch(name: &str, of: &Inputs<'_>) {
    match name {
        "embedding_forward" => drop(Cube::embedding_forward(of.active(&[V, C]), of.ids())),
        "embedding_backward" => drop(Cube::embedding_backward(of.master(), of.x(), of.ids())),
        "linear_forward" => drop(Cube::linear_forward(of.x(), of.active(&[F, C]))),
        "linear_residual_forward" => of.alone_and_shared(
            || of.active(&[2, 96, F]),
            |stream| drop(Cube::linear_residual_forward(stream, of.x(), of.active(&[F, C]))),
        ),
        "linear_backward_input" => drop(Cube::linear_backward_input(of.x(), of.active(&[C, F]))),
        "linear_backward_input_add" => of.alone_and_shared(
            || of.active(&[2, 96, F]),
            |dx| drop(Cube::linear_backward_input_add(dx, of.x(), of.active(&[C, F]))),
        ),
        "linear_backward_weight" => {
            Cube::linear_backward_weight(of.f32(&[C, F]), of.x(), of.active(&[2, 96, F]));
        }
        "rms_norm_forward" => drop(Cube::rms_norm_forward(of.x(), of.gain(), 1e-5)),
        "rms_norm_backward" => {
            Cube::rms_norm_backward(of.x(), of.x(), of.gain(), of.rstd(), of.gain());
        }
        "residual_rms_norm_forward" => of.alone_and_shared(
            || of.x(),
            |x| drop(Cube::residual_rms_norm_forward(x, of.x(), of.gain(), 1e-5)),
        ),
        "residual_rms_norm_backward" => of.alone_and_shared(
            || of.x(),
            |stream| {
                let (dy, x, rstd) = (of.x(), of.x(), of.rstd());
                Cube::residual_rms_norm_backward(stream, dy, x, of.gain(), rstd, of.gain());
            },
        ),
        "residual_forward" => {
            of.alone_and_shared(|| of.x(), |x| drop(Cube::residual_forward(x, of.x())));
        }
        "rope_forward" | "rope_backward" => {
            let rotate: fn(X, X, X) -> X = match name {
                "rope_forward" => Cube::rope_forward,
                _ => Cube::rope_backward,
            };
            for head_dim in [48, 128] {
                let table = || of.f32(&[96, head_dim / 2]);
                let heads = || of.active(&[2, 96, 4, head_dim]);
                of.alone_and_shared(heads, |x| drop(rotate(x, table(), table())));
            }
        }
        "swiglu_forward" => drop(Cube::swiglu_forward(of.x(), of.x())),
        "swiglu_backward" => drop(Cube::swiglu_backward(of.x(), of.x(), of.x())),
        "causal_attention_forward" | "causal_attention_backward" => {
            for head_dim in [48, 128] {
                let heads = |count: usize| of.active(&[2, 96, count, head_dim]);
                let [q, dout, o] = [(); 3].map(|()| heads(4));
                let [k, v] = [(); 2].map(|()| heads(2));
                let lse = of.f32(&[2, 4, 96]);
                for bound in [of.tensor(&[0, 0], DType::I32), of.ids()] {
                    let [q, k, v] = [&q, &k, &v].map(Clone::clone);
                    if name == "causal_attention_forward" {
                        Cube::causal_attention_forward(q, k, v, bound);
                    } else {
                        let [dout, o, lse] = [&dout, &o, &lse].map(Clone::clone);
                        Cube::causal_attention_backward(dout, q, k, v, o, lse, bound);
                    }
                }
            }
        }
        "head_cross_entropy_forward" => {
            Cube::head_cross_entropy_forward(of.x(), of.active(&[V, C]), of.ids());
        }
        "head_cross_entropy_backward" => {
            let weight = of.active(&[V, C]);
            Cube::head_cross_entropy_backward(of.x(), weight, of.ids(), 1.0, of.master());
        }
        "head_logits" => drop(Cube::head_logits(of.x(), of.active(&[V, C]))),
        "adamw_step" => {
            Cube::adamw_step(of.master(), of.master(), of.master(), of.master(), HYPER);
        }
        "adamw_step_with_copy" => {
            let [param, m, v, grad] = [(); 4].map(|()| of.master());
            Cube::adamw_step_with_copy(param, m, v, grad, of.tensor(&[V, C], DType::BF16), HYPER);
        }
        "sum_of_squares" => drop(Cube::sum_of_squares(of.master())),
        "fill_zero" => drop(Cube::fill_zero(of.master())),
        "kv_cache_write" => {
            Cube::kv_cache_write(of.active(&[64, 2, 48]), of.active(&[5, 2, 48]), 7);
        }
        other => panic!("how {other} is launched is missing here"),
    }
}

macro_rules! names {
    ($($check:ident: $($op:ident)+;)+) => { [$($(stringify!($op)),+),+] };
}

#[test]
fn every_kernel_compiles_for_nvidia_gpus() {
    let client = Client::load::<Transpiler>(DEVICE);
    for dtype in [DType::F32, DType::BF16] {
        for op in crate::op_table!(names) {
            launch(op, &Inputs { client: &client, dtype });
        }
    }
    let (sources, refused) = DeviceHandle::<Transpiler>::new(DEVICE)
        .submit_blocking(|server| (server.sources.clone(), server.refused.clone()))
        .unwrap();
    assert!(refused.is_empty(), "{refused:#?}");
    // Not those of the matrix products, which are cubek's.
    let ours: Vec<_> = sources
        .iter()
        .filter(|(name, _)| name.contains(module_path!().trim_end_matches("::transpiled")))
        .flat_map(|(name, sources)| sources.values().map(move |source| (name, source)))
        .collect();
    // 25 kernels, most of them in two types and several shapes.
    assert!(ours.len() > 48, "{} sources", ours.len());
    if !nvrtc_for_tests("the transpiled kernels") {
        return;
    }
    let includes = includes_for_tests();
    for (name, source) in ours {
        for architecture in ["sm_80", "sm_90"] {
            if let Err(log) = machine_code(source, architecture, &[], &includes) {
                panic!("{name} for {architecture}: {log}\n{source}");
            }
        }
    }
}
