/**
 * The device that tests run on: the cpu, unless DEVICE names another, as in
 *
 *   DEVICE=emulated SELSCAN_ADDON=$PWD/build-dev/none/selscan.node npx ava test/ops.test.ts
 */
import { activationsOn, type Device, resolveDevice } from "../lib/native.ts"

/** Throws where it cannot be had: tests that were asked for a device never pass on another. */
export const device = resolveDevice((process.env.DEVICE ?? "cpu") as Device) as Device

/** Whether programs for it may store activations as bf16. */
export const storesBf16 = activationsOn(device, "bf16") === "bf16"

/** Multiply-adds that one run may take there: every CUDA thread of the emulator is a fiber on one core. */
export const workMax = device === "emulated" ? 2e6 : Number.POSITIVE_INFINITY
