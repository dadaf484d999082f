// Two TensorFlow ops that pack rows of a table, or their gradients, into a Zstandard frame and back.
//
//   LaserPackRows:   rows T [...]                 -> frame uint8 [n]
//   LaserUnpackRows: frame uint8 [n], count int32 -> rows T [count, width]
//
// A frame is one ordinary Zstandard frame with content size and checksum. Its content is the byte
// planes of the rows: the first byte of every number, then the second of every number, and so on.
// Signs and exponents of neighbours are alike, so their plane compresses, and the planes of random
// mantissas do not stand in its way. Both sides know how many rows travel: a frame of another size,
// or with another checksum, is refused with DATA_LOSS.
//
// Written against TensorFlow's C interface, which keeps its binary form from version to version,
// and against the part of Zstandard's interface that is stable since 1.4.

#include <cstdint>
#include <cstdio>
#include <cstring>
#include <memory>

#include "tensorflow/c/kernels.h"
#include "tensorflow/c/ops.h"
#include "tensorflow/c/tf_datatype.h"
#include "tensorflow/c/tf_status.h"
#include "tensorflow/c/tf_tensor.h"

// TensorFlow's own library holds Zstandard, but its packages hold no header of it.
extern "C" {
struct ZSTD_CCtx_s;
ZSTD_CCtx_s* ZSTD_createCCtx(void);
size_t ZSTD_freeCCtx(ZSTD_CCtx_s* context);
size_t ZSTD_CCtx_setParameter(ZSTD_CCtx_s* context, int parameter, int value);
struct ZSTD_inBuffer_s {
  const void* from;
  size_t size;
  size_t position;
};
struct ZSTD_outBuffer_s {
  void* to;
  size_t size;
  size_t position;
};
size_t ZSTD_CCtx_setPledgedSrcSize(ZSTD_CCtx_s* context, unsigned long long size);
size_t ZSTD_compressStream2(ZSTD_CCtx_s* context, ZSTD_outBuffer_s* output,
                            ZSTD_inBuffer_s* input, int end);
size_t ZSTD_compressBound(size_t size);
size_t ZSTD_decompress(void* to, size_t capacity, const void* from, size_t size);
unsigned long long ZSTD_getFrameContentSize(const void* from, size_t size);
unsigned ZSTD_isError(size_t code);
const char* ZSTD_getErrorName(size_t code);
}

namespace {

constexpr int kZstdCompressionLevel = 100;  // ZSTD_c_compressionLevel
constexpr int kZstdChecksumFlag = 201;      // ZSTD_c_checksumFlag
constexpr int kZstdFlush = 1;               // ZSTD_e_flush
constexpr int kZstdEnd = 2;                 // ZSTD_e_end
constexpr int kLevel = 1;  // rows are close to random: higher levels take longer and find nothing

struct Freed {
  void operator()(TF_Tensor* tensor) const { TF_DeleteTensor(tensor); }
  void operator()(TF_Status* status) const { TF_DeleteStatus(status); }
  void operator()(ZSTD_CCtx_s* context) const { ZSTD_freeCCtx(context); }
};
using Tensor = std::unique_ptr<TF_Tensor, Freed>;
using Status = std::unique_ptr<TF_Status, Freed>;
using Bytes = std::unique_ptr<uint8_t[]>;

bool Ok(const Status& status) { return TF_GetCode(status.get()) == TF_OK; }

// Width is known while compiling: the compiler vectorises these loops.
template <size_t kSize>
void ToPlanes(const uint8_t* numbers, size_t count, uint8_t* planes) {
  for (size_t byte = 0; byte < kSize; ++byte) {
    uint8_t* plane = planes + byte * count;
    for (size_t i = 0; i < count; ++i) plane[i] = numbers[i * kSize + byte];
  }
}

template <size_t kSize>
void FromPlanes(const uint8_t* planes, size_t count, uint8_t* numbers) {
  for (size_t i = 0; i < count; ++i) {
    for (size_t byte = 0; byte < kSize; ++byte) {
      numbers[i * kSize + byte] = planes[byte * count + i];
    }
  }
}

struct Kernel {
  TF_DataType type = TF_FLOAT;
  int64_t width = 0;  // of unpacked rows
};

void* CreatePack(TF_OpKernelConstruction* construction) {
  Status status(TF_NewStatus());
  auto kernel = std::make_unique<Kernel>();
  TF_OpKernelConstruction_GetAttrType(construction, "T", &kernel->type, status.get());
  if (!Ok(status)) TF_OpKernelConstruction_Failure(construction, status.get());
  return kernel.release();
}

void* CreateUnpack(TF_OpKernelConstruction* construction) {
  Status status(TF_NewStatus());
  auto kernel = std::make_unique<Kernel>();
  TF_OpKernelConstruction_GetAttrType(construction, "T", &kernel->type, status.get());
  if (Ok(status)) {
    TF_OpKernelConstruction_GetAttrInt64(construction, "width", &kernel->width, status.get());
  }
  if (!Ok(status)) TF_OpKernelConstruction_Failure(construction, status.get());
  return kernel.release();
}

void Delete(void* kernel) { delete static_cast<Kernel*>(kernel); }

Tensor Input(TF_OpKernelContext* context, int index, const Status& status) {
  TF_Tensor* tensor = nullptr;
  TF_GetInput(context, index, &tensor, status.get());
  return Tensor(tensor);
}

// Compresses `count` planes of `size` bytes each; the length, or an error of Zstandard.
size_t Compress(ZSTD_CCtx_s* zstd, const uint8_t* planes, size_t size, size_t count, uint8_t* to,
                size_t capacity) {
  ZSTD_CCtx_setParameter(zstd, kZstdCompressionLevel, kLevel);
  ZSTD_CCtx_setParameter(zstd, kZstdChecksumFlag, 1);
  ZSTD_CCtx_setPledgedSrcSize(zstd, size * count);
  ZSTD_outBuffer_s output = {to, capacity, 0};
  for (size_t plane = 0; plane < count; ++plane) {
    // A plane begins a block, and with it statistics of its own: in few rows all planes would
    // share one block.
    ZSTD_inBuffer_s input = {planes + plane * size, size, 0};
    const size_t left =
        ZSTD_compressStream2(zstd, &output, &input, plane + 1 < count ? kZstdFlush : kZstdEnd);
    if (left != 0) return left;  // an error: there is room for all
  }
  return output.position;
}

void Pack(TF_OpKernelContext* context, const Status& status) {
  const Tensor rows = Input(context, 0, status);
  if (!Ok(status)) return;
  const size_t size = TF_TensorByteSize(rows.get());
  const size_t number = TF_DataTypeSize(TF_TensorType(rows.get()));
  const auto* numbers = static_cast<const uint8_t*>(TF_TensorData(rows.get()));
  Bytes planes(new uint8_t[size]);
  if (number == 2) {
    ToPlanes<2>(numbers, size / 2, planes.get());
  } else {
    ToPlanes<4>(numbers, size / 4, planes.get());
  }
  std::unique_ptr<ZSTD_CCtx_s, Freed> zstd(ZSTD_createCCtx());
  if (zstd == nullptr) {
    TF_SetStatus(status.get(), TF_RESOURCE_EXHAUSTED, "no memory to compress rows");
    return;
  }
  const size_t bound = ZSTD_compressBound(size) + 64;  // some for the flushes
  Bytes packed(new uint8_t[bound]);
  const size_t length =
      Compress(zstd.get(), planes.get(), size / number, number, packed.get(), bound);
  if (ZSTD_isError(length)) {
    TF_SetStatus(status.get(), TF_INTERNAL, ZSTD_getErrorName(length));
    return;
  }
  const int64_t shape[] = {static_cast<int64_t>(length)};
  const Tensor frame(
      TF_AllocateOutput(context, 0, TF_UINT8, shape, 1, length, status.get()));
  if (Ok(status)) std::memcpy(TF_TensorData(frame.get()), packed.get(), length);
}

void Damaged(const Status& status, const char* what) {
  char message[200];
  std::snprintf(message, sizeof message, "a frame of rows is damaged: %s", what);
  TF_SetStatus(status.get(), TF_DATA_LOSS, message);
}

void Unpack(const Kernel& kernel, TF_OpKernelContext* context, const Status& status) {
  const Tensor frame = Input(context, 0, status);
  if (!Ok(status)) return;
  const Tensor count = Input(context, 1, status);
  if (!Ok(status)) return;
  if (TF_NumDims(count.get()) != 0 || *static_cast<int32_t*>(TF_TensorData(count.get())) < 0) {
    TF_SetStatus(status.get(), TF_INVALID_ARGUMENT, "count must be a scalar of at least 0");
    return;
  }
  const int64_t rows = *static_cast<int32_t*>(TF_TensorData(count.get()));
  const size_t numbers = static_cast<size_t>(rows * kernel.width);
  const size_t size = numbers * TF_DataTypeSize(kernel.type);
  const size_t length = TF_TensorByteSize(frame.get());
  const void* packed = TF_TensorData(frame.get());
  // Compared before anything is allocated: a damaged size may be any number.
  if (ZSTD_getFrameContentSize(packed, length) != size) {
    Damaged(status, "it holds another number of bytes than the rows have");
    return;
  }
  Bytes planes(new uint8_t[size]);
  const size_t unpacked = ZSTD_decompress(planes.get(), size, packed, length);
  if (ZSTD_isError(unpacked)) {
    Damaged(status, ZSTD_getErrorName(unpacked));
    return;
  }
  if (unpacked != size) {
    Damaged(status, "it ends too early");
    return;
  }
  const int64_t shape[] = {rows, kernel.width};
  const Tensor output(
      TF_AllocateOutput(context, 0, kernel.type, shape, 2, size, status.get()));
  if (!Ok(status)) return;
  auto* to = static_cast<uint8_t*>(TF_TensorData(output.get()));
  if (kernel.type == TF_BFLOAT16) {
    FromPlanes<2>(planes.get(), numbers, to);
  } else {
    FromPlanes<4>(planes.get(), numbers, to);
  }
}

void ComputePack(void*, TF_OpKernelContext* context) {
  Status status(TF_NewStatus());
  Pack(context, status);
  if (!Ok(status)) TF_OpKernelContext_Failure(context, status.get());
}

void ComputeUnpack(void* kernel, TF_OpKernelContext* context) {
  Status status(TF_NewStatus());
  Unpack(*static_cast<Kernel*>(kernel), context, status);
  if (!Ok(status)) TF_OpKernelContext_Failure(context, status.get());
}

void AnyShape(TF_ShapeInferenceContext* context, TF_Status* status) {
  TF_ShapeInferenceContextSetUnknownShape(context, status);
}

void RegisterKernels(const char* op, void* (*create)(TF_OpKernelConstruction*),
                     void (*compute)(void*, TF_OpKernelContext*), TF_Status* status) {
  TF_KernelBuilder* builder = TF_NewKernelBuilder(op, "CPU", create, compute, &Delete);
  TF_RegisterKernelBuilder(op, builder, status);
}

// Runs when the library is loaded, which is when TensorFlow collects its ops.
bool Register() {
  Status status(TF_NewStatus());
  TF_OpDefinitionBuilder* pack = TF_NewOpDefinitionBuilder("LaserPackRows");
  TF_OpDefinitionBuilderAddAttr(pack, "T: {float, bfloat16}");
  TF_OpDefinitionBuilderAddInput(pack, "rows: T");
  TF_OpDefinitionBuilderAddOutput(pack, "frame: uint8");
  TF_OpDefinitionBuilderSetShapeInferenceFunction(pack, &AnyShape);
  TF_RegisterOpDefinition(pack, status.get());

  TF_OpDefinitionBuilder* unpack = TF_NewOpDefinitionBuilder("LaserUnpackRows");
  TF_OpDefinitionBuilderAddAttr(unpack, "T: {float, bfloat16}");
  TF_OpDefinitionBuilderAddAttr(unpack, "width: int >= 1");
  TF_OpDefinitionBuilderAddInput(unpack, "frame: uint8");
  TF_OpDefinitionBuilderAddInput(unpack, "count: int32");
  TF_OpDefinitionBuilderAddOutput(unpack, "rows: T");
  TF_OpDefinitionBuilderSetShapeInferenceFunction(unpack, &AnyShape);
  if (Ok(status)) TF_RegisterOpDefinition(unpack, status.get());

  if (Ok(status)) RegisterKernels("LaserPackRows", &CreatePack, &ComputePack, status.get());
  if (Ok(status)) RegisterKernels("LaserUnpackRows", &CreateUnpack, &ComputeUnpack, status.get());
  if (!Ok(status)) std::fprintf(stderr, "row frames: %s\n", TF_Message(status.get()));
  return Ok(status);
}

const bool kRegistered = Register();

}  // namespace
