"""The operators that networks are made of: all that a torch file may call which nobody has said to trust.

A list of what is allowed, since torch has some 1,700 ``aten`` operators, and not all of them check what they are
given: the backward of a pooling writes wherever its index tensor says. Here are the forward operators of inference
that check sizes and indices, on the CPU and on a GPU, and what TorchScript and ``torch.export`` write around them.
Not here, although some networks use them: backward operators; those that make a tensor of uninitialised memory or
over other memory (``empty``, ``as_strided``, ``resize_``, ``set_``, ``from_file``); ``repeat_interleave``, which
believes the length it is told; recurrent cells, packed sequences, sparse, quantised and complex tensors, losses.
"""

from __future__ import annotations

_ARITHMETIC = """
abs absolute acos acosh add addbmm addcdiv addcmul addmm addmv addr arccos arccosh arcsin arcsinh arctan arctan2
arctanh asin asinh atan atan2 atanh baddbmm bitwise_and bitwise_left_shift bitwise_not bitwise_or bitwise_right_shift
bitwise_xor bmm ceil clamp clamp_max clamp_min clip copysign cos cosh cross deg2rad diff dist div divide dot einsum eq
equal erf erfc erfinv exp exp2 expm1 fix float_power floor floor_divide fmax fmin fmod frac ge greater greater_equal
gt heaviside hypot inner isclose isfinite isinf isnan isneginf isposinf le lerp less less_equal log log10 log1p log2
logaddexp logaddexp2 logical_and logical_not logical_or logical_xor logit lt matmul maximum minimum mm mul multiply mv
nan_to_num ne neg negative not_equal outer positive pow rad2deg reciprocal remainder round rsqrt rsub sgn sigmoid sign
signbit sin sinc sinh sqrt square sub subtract tan tanh tensordot true_divide trunc where xlogy
"""
_REDUCTIONS = """
_cdist_forward _is_all_true _is_any_true all amax amin aminmax any argmax argmin argsort cdist cosine_similarity
count_nonzero cummax cummin cumprod cumsum frobenius_norm kthvalue linalg_norm linalg_vector_norm logsumexp max mean
median min mode msort nanmean nansum norm pairwise_distance prod sort std std_mean sum topk trace var var_mean
"""
_LAYERS = """
__interpolate __upsample __upsample_bilinear __upsample_nearest _adaptive_avg_pool2d _adaptive_avg_pool3d
_batch_norm_impl_index _convolution _convolution_mode _fused_rms_norm _log_softmax _masked_softmax
_native_batch_norm_legit _native_batch_norm_legit_no_training _native_multi_head_attention _nested_tensor_from_mask
_nested_tensor_from_mask_left_aligned _pad_circular _pad_enum _prelu_kernel _safe_softmax
_scaled_dot_product_attention_math _scaled_dot_product_efficient_attention _scaled_dot_product_flash_attention
_scaled_dot_product_flash_attention_for_cpu _softmax _transformer_encoder_layer_fwd _upsample_bicubic2d_aa
_upsample_bilinear2d_aa _upsample_lanczos2d_aa _upsample_nearest_exact1d _upsample_nearest_exact2d
_upsample_nearest_exact3d _weight_norm _weight_norm_interface adaptive_avg_pool1d adaptive_avg_pool2d
adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d affine_grid_generator alpha_dropout
avg_pool1d avg_pool2d avg_pool3d batch_norm bernoulli bilinear celu channel_shuffle constant_pad_nd conv1d conv2d
conv3d conv_transpose1d conv_transpose2d conv_transpose3d convolution dropout elu embedding feature_alpha_dropout
feature_dropout gelu glu grid_sampler grid_sampler_2d grid_sampler_3d group_norm hardshrink hardsigmoid hardswish
hardtanh instance_norm layer_norm leaky_relu linear log_sigmoid log_softmax max_pool1d max_pool1d_with_indices
max_pool2d max_pool2d_with_indices max_pool3d max_pool3d_with_indices max_unpool2d mish native_batch_norm
native_channel_shuffle native_dropout native_group_norm native_layer_norm nested_to_padded_tensor norm_except_dim pad
pixel_shuffle pixel_unshuffle prelu reflection_pad1d reflection_pad2d reflection_pad3d relu relu6 replication_pad1d
replication_pad2d replication_pad3d rms_norm rrelu scaled_dot_product_attention selu silu softmax softplus softshrink
threshold to_padded_tensor upsample_bicubic2d upsample_bilinear2d upsample_linear1d upsample_nearest1d
upsample_nearest2d upsample_nearest3d upsample_trilinear3d
"""
_SHAPES = """
_reshape_from_tensor _shape_as_tensor _to_copy _unsafe_index _unsafe_masked_index _unsafe_view adjoint alias arange
argwhere atleast_1d atleast_2d atleast_3d block_diag broadcast_tensors broadcast_to cat chunk clone col2im
column_stack concat concatenate contiguous copy cpu cuda detach diag diag_embed diagonal dsplit dstack expand
expand_as eye fill flatten flip fliplr flipud full full_like gather hsplit hstack im2col index index_add index_copy
index_fill index_put index_select lift lift_fresh lift_fresh_copy linspace mT masked_fill masked_scatter masked_select
meshgrid moveaxis movedim narrow new_full new_ones new_zeros nonzero nonzero_numpy numpy_T one_hot ones ones_like
permute rand rand_like ravel repeat reshape reshape_as roll rot90 row_stack scalar_tensor scatter scatter_add
scatter_reduce select select_scatter slice slice_scatter split split_with_sizes squeeze stack swapaxes swapdims t take
take_along_dim tensor tensor_split tile to transpose tril tril_indices triu triu_indices type_as unbind unflatten
unfold unsafe_chunk unsafe_split unsafe_split_with_sizes unsqueeze view view_as vsplit vstack zero zeros zeros_like
"""
_AROUND = """
Bool Float FloatImplicit Int IntImplicit ScalarImplicit __and__ __contains__ __derive_index __getitem__ __is__
__isnot__ __lshift__ __not__ __or__ __range_length __round_to_zero_floordiv __rshift__ __xor__ _assert_async
_assert_scalar _assert_tensor_metadata _functional_assert_async _functional_assert_scalar
_functional_sym_constrain_range _functional_sym_constrain_range_for_size _get_tracing_state _infer_size
_list_to_tensor _local_scalar_dense _set_item _tensor_to_list _unwrap_optional append as_tensor broadcast_shapes
can_cast clear count data degrees device dict dim element_size endswith extend fabs find floordiv format get
get_autocast_dtype get_device has_torch_function hash insert is_autocast_cpu_enabled is_autocast_enabled is_complex
is_contiguous is_floating_point is_grad_enabled is_inference is_leaf is_nonzero is_same_size is_scripting is_signed
item items join keys len list lower mathremainder modf numel ord percentFormat pop promote_types radians range remove
replace requires_grad_ result_type reverse rstrip set_grad_enabled setdefault size sorted startswith storage_offset
str stride strip sym_constrain_range sym_constrain_range_for_size sym_is_contiguous sym_numel sym_size
sym_storage_offset sym_stride title update upper values warn
"""

OPERATORS = frozenset(" ".join((_ARITHMETIC, _REDUCTIONS, _LAYERS, _SHAPES, _AROUND)).split())
"""Names without ``aten::`` and overload; where there is an in-place twin (``relu_``), it is meant too."""


def is_plain(name: str) -> bool:
    """Whether networks are made of this ``aten`` operator, named without its overload."""
    return name in OPERATORS or (name.endswith("_") and name[:-1] in OPERATORS)
