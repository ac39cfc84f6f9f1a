#include "textflag.h"

// AES-256-XTS with the AES instructions that all processors of this kind have had for long, 8 blocks at a time.

DATA poly8<>+0(SB)/8, $0x87
DATA poly8<>+8(SB)/8, $1
GLOBL poly8<>(SB), RODATA|NOPTR, $16

// What is where:
//   X0–X7  8 blocks; their tweaks are on the stack
//   X8     the next block's tweak
//   X9     scratch
//   X10    what a carry out of either half of a tweak adds
//   X11    a round's key

// NEXT8 multiplies the tweak by x.
#define NEXT8 \
	PSHUFD $0x13, X8, X9; \
	PSRAL $31, X9;        \
	PAND X10, X9;         \
	PADDQ X8, X8;         \
	PXOR X9, X8

#define LOAD(at, x) \
	MOVOU at(SI), x; \
	PXOR X8, x;      \
	MOVOU X8, at(SP); \
	NEXT8

#define STORE(at, x) \
	MOVOU at(SP), X9; \
	PXOR X9, x;       \
	MOVOU x, at(DI)

#define LOADS \
	LOAD(0, X0); \
	LOAD(16, X1); \
	LOAD(32, X2); \
	LOAD(48, X3); \
	LOAD(64, X4); \
	LOAD(80, X5); \
	LOAD(96, X6); \
	LOAD(112, X7)

#define STORES \
	STORE(0, X0); \
	STORE(16, X1); \
	STORE(32, X2); \
	STORE(48, X3); \
	STORE(64, X4); \
	STORE(80, X5); \
	STORE(96, X6); \
	STORE(112, X7)

#define ROUND8(op, at) \
	MOVOU at(AX), X11; \
	op X11, X0; \
	op X11, X1; \
	op X11, X2; \
	op X11, X3; \
	op X11, X4; \
	op X11, X5; \
	op X11, X6; \
	op X11, X7

// FIRST makes the tweak of the first block of sector R8.
#define FIRST \
	MOVQ R8, X8; \
	MOVOU 0(BX), X11; \
	PXOR X11, X8; \
	MOVOU 16(BX), X11;  \
	AESENC X11, X8; \
	MOVOU 32(BX), X11;  \
	AESENC X11, X8; \
	MOVOU 48(BX), X11;  \
	AESENC X11, X8; \
	MOVOU 64(BX), X11;  \
	AESENC X11, X8; \
	MOVOU 80(BX), X11;  \
	AESENC X11, X8; \
	MOVOU 96(BX), X11;  \
	AESENC X11, X8; \
	MOVOU 112(BX), X11;  \
	AESENC X11, X8; \
	MOVOU 128(BX), X11;  \
	AESENC X11, X8; \
	MOVOU 144(BX), X11;  \
	AESENC X11, X8; \
	MOVOU 160(BX), X11;  \
	AESENC X11, X8; \
	MOVOU 176(BX), X11;  \
	AESENC X11, X8; \
	MOVOU 192(BX), X11;  \
	AESENC X11, X8; \
	MOVOU 208(BX), X11;  \
	AESENC X11, X8; \
	MOVOU 224(BX), X11; \
	AESENCLAST X11, X8

#define ENCRYPT8 \
	MOVOU 0(AX), X11; \
	PXOR X11, X0; \
	PXOR X11, X1; \
	PXOR X11, X2; \
	PXOR X11, X3; \
	PXOR X11, X4; \
	PXOR X11, X5; \
	PXOR X11, X6; \
	PXOR X11, X7; \
	ROUND8(AESENC, 16); \
	ROUND8(AESENC, 32); \
	ROUND8(AESENC, 48); \
	ROUND8(AESENC, 64); \
	ROUND8(AESENC, 80); \
	ROUND8(AESENC, 96); \
	ROUND8(AESENC, 112); \
	ROUND8(AESENC, 128); \
	ROUND8(AESENC, 144); \
	ROUND8(AESENC, 160); \
	ROUND8(AESENC, 176); \
	ROUND8(AESENC, 192); \
	ROUND8(AESENC, 208); \
	ROUND8(AESENCLAST, 224)

#define DECRYPT8 \
	MOVOU 0(AX), X11; \
	PXOR X11, X0; \
	PXOR X11, X1; \
	PXOR X11, X2; \
	PXOR X11, X3; \
	PXOR X11, X4; \
	PXOR X11, X5; \
	PXOR X11, X6; \
	PXOR X11, X7; \
	ROUND8(AESDEC, 16); \
	ROUND8(AESDEC, 32); \
	ROUND8(AESDEC, 48); \
	ROUND8(AESDEC, 64); \
	ROUND8(AESDEC, 80); \
	ROUND8(AESDEC, 96); \
	ROUND8(AESDEC, 112); \
	ROUND8(AESDEC, 128); \
	ROUND8(AESDEC, 144); \
	ROUND8(AESDEC, 160); \
	ROUND8(AESDEC, 176); \
	ROUND8(AESDEC, 192); \
	ROUND8(AESDEC, 208); \
	ROUND8(AESDECLAST, 224)

// func encryptNarrow(keys, tweak *[15][16]byte, dst, src *byte, n int, sector uint64)
TEXT ·encryptNarrow(SB), NOSPLIT, $128-48
	MOVQ keys+0(FP), AX
	MOVQ tweak+8(FP), BX
	MOVQ dst+16(FP), DI
	MOVQ src+24(FP), SI
	MOVQ n+32(FP), CX
	MOVQ sector+40(FP), R8
	MOVOU poly8<>(SB), X10

encryptSector:
	FIRST
	MOVQ $32, DX

encryptStride:
	LOADS
	ENCRYPT8
	STORES
	ADDQ $128, SI
	ADDQ $128, DI
	DECQ DX
	JNZ  encryptStride
	INCQ R8
	DECQ CX
	JNZ  encryptSector

	PXOR X8, X8
	PXOR X11, X11
	RET

// func decryptNarrow(keys, tweak *[15][16]byte, dst, src *byte, n int, sector uint64)
TEXT ·decryptNarrow(SB), NOSPLIT, $128-48
	MOVQ keys+0(FP), AX
	MOVQ tweak+8(FP), BX
	MOVQ dst+16(FP), DI
	MOVQ src+24(FP), SI
	MOVQ n+32(FP), CX
	MOVQ sector+40(FP), R8
	MOVOU poly8<>(SB), X10

decryptSector:
	FIRST
	MOVQ $32, DX

decryptStride:
	LOADS
	DECRYPT8
	STORES
	ADDQ $128, SI
	ADDQ $128, DI
	DECQ DX
	JNZ  decryptStride
	INCQ R8
	DECQ CX
	JNZ  decryptSector

	PXOR X8, X8
	PXOR X11, X11
	RET
