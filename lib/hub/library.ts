/** The Hub's library, which takes a tenth of a second to load: too long for programs that download nothing. */
import type * as Hub from "@huggingface/hub"

export const library = (): Promise<typeof Hub> => import("@huggingface/hub")
