#include "textflag.h"

// AES-128-GCM, 16 blocks at a time, in four registers of four blocks. The hash is that of Gueron and Kounavis, "Intel
// Carry-Less Multiplication Instruction and its Usage for Computing the GCM Mode", with the reduction folded from the low
// end, and done once for 16 blocks, each of which was multiplied by its own power of the key.

DATA reverse<>+0(SB)/8, $0x08090a0b0c0d0e0f
DATA reverse<>+8(SB)/8, $0x0001020304050607
GLOBL reverse<>(SB), RODATA|NOPTR, $16

DATA poly<>+0(SB)/8, $0x0000000000000001
DATA poly<>+8(SB)/8, $0xc200000000000000
GLOBL poly<>(SB), RODATA|NOPTR, $16

DATA lanes<>+0(SB)/8, $0
DATA lanes<>+8(SB)/8, $0
DATA lanes<>+16(SB)/8, $1
DATA lanes<>+24(SB)/8, $0
DATA lanes<>+32(SB)/8, $2
DATA lanes<>+40(SB)/8, $0
DATA lanes<>+48(SB)/8, $3
DATA lanes<>+56(SB)/8, $0
GLOBL lanes<>(SB), RODATA|NOPTR, $64

DATA four<>+0(SB)/8, $4
DATA four<>+8(SB)/8, $0
GLOBL four<>(SB), RODATA|NOPTR, $16

// What is where:
//   Z0–Z3    16 blocks
//   Z4       the counter's next four blocks, in reverse; Z5 what goes to the next ones
//   Z6       reverses the bytes of each block
//   Z7       the polynomial
//   X8       the hash, in reverse
//   Z9–Z15, Z31  scratch
//   Z16–Z26  keys of the rounds
//   Z27–Z30  powers of the hash key

#define LOAD_KEYS(p) \
	VBROADCASTI32X4 0(p), Z16;   \
	VBROADCASTI32X4 16(p), Z17;  \
	VBROADCASTI32X4 32(p), Z18;  \
	VBROADCASTI32X4 48(p), Z19;  \
	VBROADCASTI32X4 64(p), Z20;  \
	VBROADCASTI32X4 80(p), Z21;  \
	VBROADCASTI32X4 96(p), Z22;  \
	VBROADCASTI32X4 112(p), Z23; \
	VBROADCASTI32X4 128(p), Z24; \
	VBROADCASTI32X4 144(p), Z25; \
	VBROADCASTI32X4 160(p), Z26

#define LOAD_HASH(powers, y) \
	VMOVDQU64 0(powers), Z27;          \
	VMOVDQU64 64(powers), Z28;         \
	VMOVDQU64 128(powers), Z29;        \
	VMOVDQU64 192(powers), Z30;        \
	VBROADCASTI32X4 reverse<>(SB), Z6; \
	VBROADCASTI32X4 poly<>(SB), Z7;    \
	VMOVDQU (y), X8;                   \
	VPSHUFB X6, X8, X8

#define LOAD_COUNTER(p) \
	VBROADCASTI32X4 four<>(SB), Z5; \
	VBROADCASTI32X4 (p), Z4;        \
	VPADDD lanes<>(SB), Z4, Z4

#define ROUND(key) \
	VAESENC key, Z0, Z0; \
	VAESENC key, Z1, Z1; \
	VAESENC key, Z2, Z2; \
	VAESENC key, Z3, Z3

// CRYPT is counter mode on 16 blocks: Z0–Z3 from src.
#define CRYPT(src) \
	VPSHUFB Z6, Z4, Z0;         \
	VPADDD Z5, Z4, Z4;          \
	VPSHUFB Z6, Z4, Z1;         \
	VPADDD Z5, Z4, Z4;          \
	VPSHUFB Z6, Z4, Z2;         \
	VPADDD Z5, Z4, Z4;          \
	VPSHUFB Z6, Z4, Z3;         \
	VPADDD Z5, Z4, Z4;          \
	VPXORQ Z16, Z0, Z0;         \
	VPXORQ Z16, Z1, Z1;         \
	VPXORQ Z16, Z2, Z2;         \
	VPXORQ Z16, Z3, Z3;         \
	ROUND(Z17);                 \
	ROUND(Z18);                 \
	ROUND(Z19);                 \
	ROUND(Z20);                 \
	ROUND(Z21);                 \
	ROUND(Z22);                 \
	ROUND(Z23);                 \
	ROUND(Z24);                 \
	ROUND(Z25);                 \
	VPXORQ 0(src), Z26, Z12;    \
	VPXORQ 64(src), Z26, Z13;   \
	VPXORQ 128(src), Z26, Z14;  \
	VPXORQ 192(src), Z26, Z15;  \
	VAESENCLAST Z12, Z0, Z0;    \
	VAESENCLAST Z13, Z1, Z1;    \
	VAESENCLAST Z14, Z2, Z2;    \
	VAESENCLAST Z15, Z3, Z3

#define STORE(dst) \
	VMOVDQU64 Z0, 0(dst);   \
	VMOVDQU64 Z1, 64(dst);  \
	VMOVDQU64 Z2, 128(dst); \
	VMOVDQU64 Z3, 192(dst)

// FOUR adds the products of the four blocks in b to Z9 (low), Z10 (middle) and Z11 (high).
#define FOUR(b, powers) \
	VPCLMULQDQ $0x00, powers, b, Z12; \
	VPCLMULQDQ $0x11, powers, b, Z13; \
	VPCLMULQDQ $0x01, powers, b, Z14; \
	VPCLMULQDQ $0x10, powers, b, Z15; \
	VPXORQ Z12, Z9, Z9;               \
	VPXORQ Z13, Z11, Z11;             \
	VPTERNLOGQ $0x96, Z14, Z15, Z10

// HASH takes the blocks of Z0–Z3 into X8.
#define HASH \
	VPSHUFB Z6, Z0, Z0;               \
	VPSHUFB Z6, Z1, Z1;               \
	VPSHUFB Z6, Z2, Z2;               \
	VPSHUFB Z6, Z3, Z3;               \
	VPCLMULQDQ $0x00, Z30, Z3, Z9;    \
	VPCLMULQDQ $0x11, Z30, Z3, Z11;   \
	VPCLMULQDQ $0x01, Z30, Z3, Z10;   \
	VPCLMULQDQ $0x10, Z30, Z3, Z12;   \
	VPXORQ Z12, Z10, Z10;             \
	FOUR(Z2, Z29);                    \
	FOUR(Z1, Z28);                    \
	VPXORQ Z8, Z0, Z0;                \
	FOUR(Z0, Z27);                    \
	VPCLMULQDQ $0x01, Z9, Z7, Z12;    \
	VPSHUFD $0x4e, Z9, Z9;            \
	VPTERNLOGQ $0x96, Z9, Z12, Z10;   \
	VPCLMULQDQ $0x01, Z10, Z7, Z12;   \
	VPSHUFD $0x4e, Z10, Z10;          \
	VPTERNLOGQ $0x96, Z10, Z12, Z11;  \
	VEXTRACTI64X4 $1, Z11, Y12;       \
	VPXOR Y12, Y11, Y11;              \
	VEXTRACTI128 $1, Y11, X12;        \
	VPXOR X12, X11, X8

#define STORE_HASH(y) \
	VPSHUFB X6, X8, X8; \
	VMOVDQU X8, (y)

// BEGIN takes the arguments of seal and open into registers, END gives the next counter and the hash back.
#define BEGIN \
	MOVQ keys+0(FP), AX;     \
	MOVQ powers+8(FP), BX;   \
	MOVQ dst+16(FP), DI;     \
	MOVQ src+24(FP), SI;     \
	MOVQ n+32(FP), CX;       \
	MOVQ counter+40(FP), R8; \
	MOVQ y+48(FP), R9;       \
	LOAD_KEYS(AX);           \
	LOAD_HASH(BX, R9);       \
	LOAD_COUNTER(R8)

#define END \
	VMOVDQU X4, (R8); \
	STORE_HASH(R9);   \
	VZEROUPPER

// func seal(keys *[11][16]byte, powers *[16][2]uint64, dst, src *byte, n int, counter, y *[16]byte)
TEXT ·seal(SB), NOSPLIT, $0-56
	BEGIN

sealLoop:
	CRYPT(SI)
	STORE(DI)
	HASH
	ADDQ $256, SI
	ADDQ $256, DI
	DECQ CX
	JNZ  sealLoop

	END
	RET

// func open(keys *[11][16]byte, powers *[16][2]uint64, dst, src *byte, n int, counter, y *[16]byte)
TEXT ·open(SB), NOSPLIT, $0-56
	BEGIN

openLoop:
	VMOVDQU64 0(SI), Z0
	VMOVDQU64 64(SI), Z1
	VMOVDQU64 128(SI), Z2
	VMOVDQU64 192(SI), Z3
	HASH
	CRYPT(SI)
	STORE(DI)
	ADDQ $256, SI
	ADDQ $256, DI
	DECQ CX
	JNZ  openLoop

	END
	RET

// func ghash(powers *[16][2]uint64, src *[256]byte, y *[16]byte)
TEXT ·ghash(SB), NOSPLIT, $0-24
	MOVQ powers+0(FP), BX
	MOVQ src+8(FP), SI
	MOVQ y+16(FP), R9
	LOAD_HASH(BX, R9)
	VMOVDQU64 0(SI), Z0
	VMOVDQU64 64(SI), Z1
	VMOVDQU64 128(SI), Z2
	VMOVDQU64 192(SI), Z3
	HASH
	STORE_HASH(R9)
	VZEROUPPER
	RET

#define EXPAND(rcon, at) \
	AESKEYGENASSIST rcon, X0, X1; \
	PSHUFD $0xff, X1, X1;         \
	MOVOU X0, X2;                 \
	PSLLO $4, X2;                 \
	PXOR X2, X0;                  \
	PSLLO $4, X2;                 \
	PXOR X2, X0;                  \
	PSLLO $4, X2;                 \
	PXOR X2, X0;                  \
	PXOR X1, X0;                  \
	MOVOU X0, at(DI)

// func expandKey(key *byte, keys *[11][16]byte)
TEXT ·expandKey(SB), NOSPLIT, $0-16
	MOVQ  key+0(FP), SI
	MOVQ  keys+8(FP), DI
	MOVOU (SI), X0
	MOVOU X0, 0(DI)
	EXPAND($0x01, 16)
	EXPAND($0x02, 32)
	EXPAND($0x04, 48)
	EXPAND($0x08, 64)
	EXPAND($0x10, 80)
	EXPAND($0x20, 96)
	EXPAND($0x40, 112)
	EXPAND($0x80, 128)
	EXPAND($0x1b, 144)
	EXPAND($0x36, 160)
	RET
