#include "textflag.h"

// AES-256-XTS, 16 blocks at a time, in four registers of four blocks. A tweak is a polynomial over GF(2), its bytes and bits in
// ascending order; the next block's is the one before times x, modulo x^128 + x^7 + x^2 + x + 1.

DATA poly<>+0(SB)/8, $0x87
DATA poly<>+8(SB)/8, $0
GLOBL poly<>(SB), RODATA|NOPTR, $16

// By how many bits the first tweak is shifted for each of 16 blocks, and what that leaves of 64.
DATA left<>+0(SB)/8, $0
DATA left<>+8(SB)/8, $0
DATA left<>+16(SB)/8, $1
DATA left<>+24(SB)/8, $1
DATA left<>+32(SB)/8, $2
DATA left<>+40(SB)/8, $2
DATA left<>+48(SB)/8, $3
DATA left<>+56(SB)/8, $3
DATA left<>+64(SB)/8, $4
DATA left<>+72(SB)/8, $4
DATA left<>+80(SB)/8, $5
DATA left<>+88(SB)/8, $5
DATA left<>+96(SB)/8, $6
DATA left<>+104(SB)/8, $6
DATA left<>+112(SB)/8, $7
DATA left<>+120(SB)/8, $7
DATA left<>+128(SB)/8, $8
DATA left<>+136(SB)/8, $8
DATA left<>+144(SB)/8, $9
DATA left<>+152(SB)/8, $9
DATA left<>+160(SB)/8, $10
DATA left<>+168(SB)/8, $10
DATA left<>+176(SB)/8, $11
DATA left<>+184(SB)/8, $11
DATA left<>+192(SB)/8, $12
DATA left<>+200(SB)/8, $12
DATA left<>+208(SB)/8, $13
DATA left<>+216(SB)/8, $13
DATA left<>+224(SB)/8, $14
DATA left<>+232(SB)/8, $14
DATA left<>+240(SB)/8, $15
DATA left<>+248(SB)/8, $15
GLOBL left<>(SB), RODATA|NOPTR, $256

DATA right<>+0(SB)/8, $64
DATA right<>+8(SB)/8, $64
DATA right<>+16(SB)/8, $63
DATA right<>+24(SB)/8, $63
DATA right<>+32(SB)/8, $62
DATA right<>+40(SB)/8, $62
DATA right<>+48(SB)/8, $61
DATA right<>+56(SB)/8, $61
DATA right<>+64(SB)/8, $60
DATA right<>+72(SB)/8, $60
DATA right<>+80(SB)/8, $59
DATA right<>+88(SB)/8, $59
DATA right<>+96(SB)/8, $58
DATA right<>+104(SB)/8, $58
DATA right<>+112(SB)/8, $57
DATA right<>+120(SB)/8, $57
DATA right<>+128(SB)/8, $56
DATA right<>+136(SB)/8, $56
DATA right<>+144(SB)/8, $55
DATA right<>+152(SB)/8, $55
DATA right<>+160(SB)/8, $54
DATA right<>+168(SB)/8, $54
DATA right<>+176(SB)/8, $53
DATA right<>+184(SB)/8, $53
DATA right<>+192(SB)/8, $52
DATA right<>+200(SB)/8, $52
DATA right<>+208(SB)/8, $51
DATA right<>+216(SB)/8, $51
DATA right<>+224(SB)/8, $50
DATA right<>+232(SB)/8, $50
DATA right<>+240(SB)/8, $49
DATA right<>+248(SB)/8, $49
GLOBL right<>(SB), RODATA|NOPTR, $256

// What is where:
//   Z0–Z3    16 blocks
//   Z4–Z7    their tweaks
//   Z8–Z15   scratch
//   Z16–Z30  keys of the rounds
//   Z31      the polynomial

#define LOAD_KEYS(p) \
	VBROADCASTI32X4 0(p), Z16; \
	VBROADCASTI32X4 16(p), Z17; \
	VBROADCASTI32X4 32(p), Z18; \
	VBROADCASTI32X4 48(p), Z19; \
	VBROADCASTI32X4 64(p), Z20; \
	VBROADCASTI32X4 80(p), Z21; \
	VBROADCASTI32X4 96(p), Z22; \
	VBROADCASTI32X4 112(p), Z23; \
	VBROADCASTI32X4 128(p), Z24; \
	VBROADCASTI32X4 144(p), Z25; \
	VBROADCASTI32X4 160(p), Z26; \
	VBROADCASTI32X4 176(p), Z27; \
	VBROADCASTI32X4 192(p), Z28; \
	VBROADCASTI32X4 208(p), Z29; \
	VBROADCASTI32X4 224(p), Z30

// SPREAD makes four blocks' tweaks from the sector's first, in Z8.
#define SPREAD(at, tweaks) \
	VPSLLVQ left<>+at(SB), Z8, tweaks;  \
	VPSRLVQ right<>+at(SB), Z8, Z9;     \
	VPSLLDQ $8, Z9, Z10;                \
	VPCLMULQDQ $0x01, Z31, Z9, Z11;     \
	VPTERNLOGQ $0x96, Z10, Z11, tweaks

// TWEAKS makes the tweaks of the first 16 blocks of sector R8.
#define TWEAKS \
	VMOVQ R8, X8; \
	VPXOR 0(BX), X8, X8; \
	VAESENC 16(BX), X8, X8; \
	VAESENC 32(BX), X8, X8; \
	VAESENC 48(BX), X8, X8; \
	VAESENC 64(BX), X8, X8; \
	VAESENC 80(BX), X8, X8; \
	VAESENC 96(BX), X8, X8; \
	VAESENC 112(BX), X8, X8; \
	VAESENC 128(BX), X8, X8; \
	VAESENC 144(BX), X8, X8; \
	VAESENC 160(BX), X8, X8; \
	VAESENC 176(BX), X8, X8; \
	VAESENC 192(BX), X8, X8; \
	VAESENC 208(BX), X8, X8; \
	VAESENCLAST 224(BX), X8, X8; \
	VSHUFI32X4 $0, Z8, Z8, Z8; \
	SPREAD(0, Z4); \
	SPREAD(64, Z5); \
	SPREAD(128, Z6); \
	SPREAD(192, Z7)

// NEXT multiplies four tweaks by x^16.
#define NEXT(tweaks, scratch) \
	VPSRLDQ $14, tweaks, scratch;               \
	VPCLMULQDQ $0x00, Z31, scratch, scratch;    \
	VPSLLDQ $2, tweaks, tweaks;                 \
	VPXORQ scratch, tweaks, tweaks

#define ROUND(op, key) \
	op key, Z0, Z0; \
	op key, Z1, Z1; \
	op key, Z2, Z2; \
	op key, Z3, Z3

#define ENCRYPT \
	VMOVDQU64 0(SI), Z0; \
	VMOVDQU64 64(SI), Z1; \
	VMOVDQU64 128(SI), Z2; \
	VMOVDQU64 192(SI), Z3; \
	VPTERNLOGQ $0x96, Z4, Z16, Z0; \
	VPTERNLOGQ $0x96, Z5, Z16, Z1; \
	VPTERNLOGQ $0x96, Z6, Z16, Z2; \
	VPTERNLOGQ $0x96, Z7, Z16, Z3; \
	ROUND(VAESENC, Z17); \
	ROUND(VAESENC, Z18); \
	ROUND(VAESENC, Z19); \
	ROUND(VAESENC, Z20); \
	ROUND(VAESENC, Z21); \
	ROUND(VAESENC, Z22); \
	ROUND(VAESENC, Z23); \
	ROUND(VAESENC, Z24); \
	ROUND(VAESENC, Z25); \
	ROUND(VAESENC, Z26); \
	ROUND(VAESENC, Z27); \
	ROUND(VAESENC, Z28); \
	ROUND(VAESENC, Z29); \
	VPXORQ Z4, Z30, Z12; \
	VPXORQ Z5, Z30, Z13; \
	VPXORQ Z6, Z30, Z14; \
	VPXORQ Z7, Z30, Z15; \
	VAESENCLAST Z12, Z0, Z0; \
	VAESENCLAST Z13, Z1, Z1; \
	VAESENCLAST Z14, Z2, Z2; \
	VAESENCLAST Z15, Z3, Z3; \
	VMOVDQU64 Z0, 0(DI); \
	VMOVDQU64 Z1, 64(DI); \
	VMOVDQU64 Z2, 128(DI); \
	VMOVDQU64 Z3, 192(DI); \
	NEXT(Z4, Z8); \
	NEXT(Z5, Z9); \
	NEXT(Z6, Z10); \
	NEXT(Z7, Z11)

#define DECRYPT \
	VMOVDQU64 0(SI), Z0; \
	VMOVDQU64 64(SI), Z1; \
	VMOVDQU64 128(SI), Z2; \
	VMOVDQU64 192(SI), Z3; \
	VPTERNLOGQ $0x96, Z4, Z16, Z0; \
	VPTERNLOGQ $0x96, Z5, Z16, Z1; \
	VPTERNLOGQ $0x96, Z6, Z16, Z2; \
	VPTERNLOGQ $0x96, Z7, Z16, Z3; \
	ROUND(VAESDEC, Z17); \
	ROUND(VAESDEC, Z18); \
	ROUND(VAESDEC, Z19); \
	ROUND(VAESDEC, Z20); \
	ROUND(VAESDEC, Z21); \
	ROUND(VAESDEC, Z22); \
	ROUND(VAESDEC, Z23); \
	ROUND(VAESDEC, Z24); \
	ROUND(VAESDEC, Z25); \
	ROUND(VAESDEC, Z26); \
	ROUND(VAESDEC, Z27); \
	ROUND(VAESDEC, Z28); \
	ROUND(VAESDEC, Z29); \
	VPXORQ Z4, Z30, Z12; \
	VPXORQ Z5, Z30, Z13; \
	VPXORQ Z6, Z30, Z14; \
	VPXORQ Z7, Z30, Z15; \
	VAESDECLAST Z12, Z0, Z0; \
	VAESDECLAST Z13, Z1, Z1; \
	VAESDECLAST Z14, Z2, Z2; \
	VAESDECLAST Z15, Z3, Z3; \
	VMOVDQU64 Z0, 0(DI); \
	VMOVDQU64 Z1, 64(DI); \
	VMOVDQU64 Z2, 128(DI); \
	VMOVDQU64 Z3, 192(DI); \
	NEXT(Z4, Z8); \
	NEXT(Z5, Z9); \
	NEXT(Z6, Z10); \
	NEXT(Z7, Z11)

// FORGET leaves no key, tweak or text in a register.
#define FORGET \
	VPXORQ Z16, Z16, Z16; \
	VPXORQ Z17, Z17, Z17; \
	VPXORQ Z18, Z18, Z18; \
	VPXORQ Z19, Z19, Z19; \
	VPXORQ Z20, Z20, Z20; \
	VPXORQ Z21, Z21, Z21; \
	VPXORQ Z22, Z22, Z22; \
	VPXORQ Z23, Z23, Z23; \
	VPXORQ Z24, Z24, Z24; \
	VPXORQ Z25, Z25, Z25; \
	VPXORQ Z26, Z26, Z26; \
	VPXORQ Z27, Z27, Z27; \
	VPXORQ Z28, Z28, Z28; \
	VPXORQ Z29, Z29, Z29; \
	VPXORQ Z30, Z30, Z30; \
	VZEROALL

#define BEGIN \
	MOVQ keys+0(FP), AX;   \
	MOVQ tweak+8(FP), BX;  \
	MOVQ dst+16(FP), DI;   \
	MOVQ src+24(FP), SI;   \
	MOVQ n+32(FP), CX;     \
	MOVQ sector+40(FP), R8; \
	LOAD_KEYS(AX);         \
	VBROADCASTI32X4 poly<>(SB), Z31

// func encrypt(keys, tweak *[15][16]byte, dst, src *byte, n int, sector uint64)
TEXT ·encrypt(SB), NOSPLIT, $0-48
	BEGIN

encryptSector:
	TWEAKS
	MOVQ $16, DX

encryptStride:
	ENCRYPT
	ADDQ $256, SI
	ADDQ $256, DI
	DECQ DX
	JNZ  encryptStride
	INCQ R8
	DECQ CX
	JNZ  encryptSector

	FORGET
	RET

// func decrypt(keys, tweak *[15][16]byte, dst, src *byte, n int, sector uint64)
TEXT ·decrypt(SB), NOSPLIT, $0-48
	BEGIN

decryptSector:
	TWEAKS
	MOVQ $16, DX

decryptStride:
	DECRYPT
	ADDQ $256, SI
	ADDQ $256, DI
	DECQ DX
	JNZ  decryptStride
	INCQ R8
	DECQ CX
	JNZ  decryptSector

	FORGET
	RET

#define SHIFTED(key) \
	MOVOU key, X2;  \
	PSLLO $4, X2;   \
	PXOR X2, key;   \
	PSLLO $4, X2;   \
	PXOR X2, key;   \
	PSLLO $4, X2;   \
	PXOR X2, key

#define EXPAND_EVEN(rcon, at) \
	AESKEYGENASSIST rcon, X1, X3; \
	PSHUFD $0xff, X3, X3;         \
	SHIFTED(X0);                  \
	PXOR X3, X0;                  \
	MOVOU X0, at(DI)

#define EXPAND_ODD(at) \
	AESKEYGENASSIST $0, X0, X3; \
	PSHUFD $0xaa, X3, X3;       \
	SHIFTED(X1);                \
	PXOR X3, X1;                \
	MOVOU X1, at(DI)

// func expandKey(key *byte, keys *[15][16]byte)
TEXT ·expandKey(SB), NOSPLIT, $0-16
	MOVQ  key+0(FP), SI
	MOVQ  keys+8(FP), DI
	MOVOU (SI), X0
	MOVOU 16(SI), X1
	MOVOU X0, 0(DI)
	MOVOU X1, 16(DI)
	EXPAND_EVEN($0x01, 32)
	EXPAND_ODD(48)
	EXPAND_EVEN($0x02, 64)
	EXPAND_ODD(80)
	EXPAND_EVEN($0x04, 96)
	EXPAND_ODD(112)
	EXPAND_EVEN($0x08, 128)
	EXPAND_ODD(144)
	EXPAND_EVEN($0x10, 160)
	EXPAND_ODD(176)
	EXPAND_EVEN($0x20, 192)
	EXPAND_ODD(208)
	EXPAND_EVEN($0x40, 224)
	RET

#define INVERT(from, to) \
	MOVOU from(SI), X0; \
	AESIMC X0, X0;      \
	MOVOU X0, to(DI)

// func invertKeys(keys, inverse *[15][16]byte)
TEXT ·invertKeys(SB), NOSPLIT, $0-16
	MOVQ  keys+0(FP), SI
	MOVQ  inverse+8(FP), DI
	MOVOU 224(SI), X0
	MOVOU X0, 0(DI)
	INVERT(208, 16)
	INVERT(192, 32)
	INVERT(176, 48)
	INVERT(160, 64)
	INVERT(144, 80)
	INVERT(128, 96)
	INVERT(112, 112)
	INVERT(96, 128)
	INVERT(80, 144)
	INVERT(64, 160)
	INVERT(48, 176)
	INVERT(32, 192)
	INVERT(16, 208)
	MOVOU 0(SI), X0
	MOVOU X0, 224(DI)
	RET
