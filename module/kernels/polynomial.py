"""The polynomials of the noise's normals; their errors are given in ``kernels/cpu_stream.py``."""

LOG = (
    0.33333331, -0.25000823, 0.20001227, -0.16623355, 0.14201760, -0.13160197, 0.12761563, -0.07634438,
)  # fmt: skip
"""q of ln(1 + f) = f - f^2/2 + f^3 q(f) on [1/sqrt 2 - 1, sqrt 2 - 1], lowest power first: own fit, error 6e-9."""
LN2 = 0.69314718
SINE = (6.2831855, -41.341662, 81.592354, -75.393562)
"""S of sin(2 pi t) = t S(t^2) for |t| <= 1/8 turn: own minimax fit, relative error 4e-9."""
COSINE = (1.0, -19.739208, 64.939308, -85.442299, 59.202797)
"""C of cos(2 pi t) = C(t^2) there: own minimax fit, relative error 6e-11."""
SQRT_HALF_BITS = 0x3F3504F3
"""The square root of 1/2 as the bits of a float32."""
