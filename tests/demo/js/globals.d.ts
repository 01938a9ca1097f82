// What the page's scripts find in their surroundings and TypeScript's own libraries do not declare.

type Bytes = Uint8Array<ArrayBuffer>; // memory that a socket, a file or a codec may take
type Samples = Float32Array<ArrayBuffer>;

// Gradio's listeners in demo/page/ui.py call the page through this name.
interface Window {
  PersonaPlex: typeof import("../../../demo/page/static/main.js").page;
  accessToken?: string; // of the page's address (demo/page/html/page.html)
  pageModules: {
    load(path: string): Promise<unknown>;
    address(path: string): string;
    there: boolean;
    arrive(): void;
  };
}

// The audio thread.
declare const sampleRate: number; // Hz
declare const currentFrame: number; // samples since the context was made
declare class AudioWorkletProcessor {
  readonly port: MessagePort;
}
declare function registerProcessor(
  name: string,
  processor: new (options: { processorOptions: { tap: boolean } }) => AudioWorkletProcessor & {
    process(inputs: Samples[][], outputs: Samples[][]): boolean;
  },
): void;
